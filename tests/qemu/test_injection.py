"""The userfaultfd of a QEMU, got from outside: the guest runs on, and QEMU has what it had."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from support.injections import at_call, got, kill_us
from support.qemu import QemuProcess
from support.qemu_saved import in_turn
from support.watched import require_userfaultfd

from parallel_fixedram.host.injection.inject import takes_injection, userfaultfd_of
from parallel_fixedram.host.memory.userfaultfd import DEVICE, PageFault, Userfaultfd
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor

SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


@pytest.fixture(autouse=True)
def needed() -> None:
    require_userfaultfd()


def descriptors(guest: QemuProcess) -> dict[str, str]:
    return {each.name: os.readlink(each) for each in Path(f"/proc/{guest.pid}/fd").iterdir()}


def ticks(guest: QemuProcess) -> bool:
    """The guest writes a letter a round, in order, and has seen its memory right until then."""
    guest.take_serial()
    return in_turn(guest.wait_serial("[A-Z]{3}")[0])


def watch(guest: QemuProcess, found: Userfaultfd) -> None:
    """Have a write of the guest wait, and let it pass."""
    [ram] = [block for block in guest.ramblocks() if block.name == "m"]
    found.enable()
    found.register(ram.hva, ram.total)
    found.protect(ram.hva, ram.total)
    while not (faults := found.read()):
        os.sched_yield()
    assert all(isinstance(fault, PageFault) for fault in faults)
    found.close()


@pytest.mark.parametrize("options", [(), SANDBOX], ids=["plain", "sandbox"])
def test_the_guest_runs_on_and_qemu_has_the_descriptors_that_it_had(
    ticker: list[str], options: tuple[str, ...]
) -> None:
    with QemuProcess(*ticker, *options) as guest:
        guest.wait_serial("C")
        before = descriptors(guest)
        assert takes_injection(guest.pid) is None
        found = userfaultfd_of(guest.pid)
        assert descriptors(guest) == before
        watch(guest, found)
        assert ticks(guest)
        assert descriptors(guest) == before


def test_wherever_the_injector_is_killed_the_guest_runs_on(ticker: list[str]) -> None:
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("C")
        before = descriptors(guest)
        for number in itertools.count():
            with at_call(number, after=kill_us):
                if got(guest.pid):
                    break
        assert number > 10
        assert ticks(guest)
        assert guest.status() == "running"
        assert descriptors(guest) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have QEMU become somebody else")
def test_a_qemu_without_the_right_is_handed_the_device(ticker: list[str]) -> None:
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() != "0\n":
        pytest.skip("every process may have a userfaultfd here")
    with QemuProcess(*ticker, "-run-with", "user=nobody") as guest, Monitor(os.fspath(guest.monitor_path)) as monitor:
        guest.wait_serial("C")
        before = descriptors(guest)
        with FdSet(monitor) as fdset:

            def hand_over(device: int) -> int:
                fdset.add(device)
                [number] = (int(number) for number, what in descriptors(guest).items() if what == DEVICE)
                assert fdset.number_in_qemu() == number
                return number

            found = userfaultfd_of(guest.pid, hand_over=hand_over)
        watch(guest, found)
        assert ticks(guest)
        assert descriptors(guest) == before
