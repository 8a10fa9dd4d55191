"""The death of QEMU, and QEMU that hangs, in the middle of a save."""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from support.cli import SECONDS, refused
from support.faults import Forked, Moment, before, behind
from support.qemu import QemuProcess, Ram, boot_from
from support.saving import save

import parallel_fixedram
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.pages.changed_job import ChangedJob
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host.files.publish import PendingFile
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.machines.qemu import discovery, fdset
from parallel_fixedram.machines.qemu.machine import QemuMachine
from parallel_fixedram.machines.qemu.monitor import Monitor

pytestmark = pytest.mark.usefixtures("nothing_is_left")

MIB = 1 << 20
SHORT = 0.3
STATE = "xen-save-devices-state"
STOPPED = behind(Monitor, "execute", "stop")

MOMENTS = {
    "before anything is asked": behind(Monitor, "__init__"),
    "when its blocks are known": behind(discovery, "ramblocks"),
    "before the data map": before(PendingFile, "set_size"),
    "before the stop": before(Pause, "__enter__"),
    "after the stop": STOPPED,
    "while workers write": before(ChangedJob, "run", since=STOPPED),
    "at the device state": before(Monitor, "execute", STATE),
    "after the device state": behind(Monitor, "execute", STATE),
    "before it goes on": before(Monitor, "execute", "cont"),
}

HANGS = ["before the stop", "after the stop", "at the device state", "before it goes on"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, qemu_binary: str) -> list[str]:
    """A small guest: 100 rounds a second over 1..8 MiB."""
    path = tmp_path_factory.mktemp("small") / "image"
    path.write_bytes(boot_image(end=8 * MIB))
    return boot_from(path)


@pytest.fixture(scope="module")
def guest(image: list[str]) -> Iterator[QemuProcess]:
    """A guest that survives."""
    with QemuProcess(*image, ram=Ram(32 * MIB)) as guest:
        guest.wait_serial("C")
        yield guest


def saving(guest: QemuProcess, file: Path, moment: Moment, act: Callable[..., object], timeout: float) -> Forked:
    def prepare() -> None:
        fdset._GOODBYE_SECONDS = min(timeout, fdset._GOODBYE_SECONDS)

    argv = ["save", file, "--qmp", guest.monitor_path, "--channels", 2, "--experimental-multifd"]
    argv += ["--qmp-timeout", timeout, "--capture", "compare"]
    return Forked(*argv, moment=moment, act=act, prepare=prepare)


def kill_and_wait(pid: int) -> Callable[..., None]:
    def act(*_: object) -> None:
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], SECONDS)[0]
        os.close(pidfd)

    return act


@pytest.mark.parametrize("backend", ["private", "memfd"])
@pytest.mark.parametrize("when", MOMENTS)
def test_a_qemu_that_is_killed_ends_the_save_in_one_line(
    image: list[str], tmp_path: Path, when: str, backend: Literal["private", "memfd"]
) -> None:
    with QemuProcess(*image, ram=Ram(32 * MIB, backend=backend), paused=True) as guest:
        guest.cont()
        act = kill_and_wait(guest.pid)
        with saving(guest, tmp_path / "vm.mr", MOMENTS[when], act, SECONDS) as running:
            result = running.finish()
            assert running.acted
            refused(result, 4, "")
            assert running.left() == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("when", HANGS)
def test_a_qemu_that_hangs_ends_the_save_and_goes_on_when_it_wakes_up(
    guest: QemuProcess, tmp_path: Path, when: str
) -> None:
    pid = guest.pid
    try:
        with saving(
            guest, tmp_path / "vm.mr", MOMENTS[when], lambda *_: os.kill(pid, signal.SIGSTOP), SHORT
        ) as running:
            result = running.finish()
            assert running.acted
            refused(result, 4, "within 0.3 s")
            os.kill(pid, signal.SIGCONT)
            assert running.left() == []
    finally:
        os.kill(pid, signal.SIGCONT)
    assert os.listdir(tmp_path) == []
    while guest.status() != "running":
        guest.wait_event("RESUME")
    guest.take_serial()
    guest.wait_serial("[A-Z]")
    save(lambda: parallel_fixedram.open_qemu(str(guest.monitor_path)), str(tmp_path / "vm.mr"))


def test_a_guest_whose_qemu_hangs_when_we_are_killed_goes_on_however_late_it_wakes_up(
    guest: QemuProcess, tmp_path: Path
) -> None:
    """Of a closed connection QEMU reads nothing more, so the guardian has to be there until then."""
    pid = guest.pid

    def let_hours_go_by_for_the_guardian() -> None:
        def watch(guardian: Guardian, *given: int) -> None:
            time.monotonic = itertools.count(0.0, 3600.0).__next__
            real(guardian, *given)

        real = Guardian._watch
        Guardian._watch = watch

    def hang_and_die(*_: object) -> None:
        os.kill(pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)

    argv = ["save", tmp_path / "vm.mr", "--qmp", guest.monitor_path]
    try:
        with Forked(*argv, moment=STOPPED, act=hang_and_die, prepare=let_hours_go_by_for_the_guardian) as running:
            assert running.finish().code == -signal.SIGKILL
            os.kill(pid, signal.SIGCONT)
            assert running.left() == []
    finally:
        os.kill(pid, signal.SIGCONT)
    assert guest.status() == "running"


def test_a_program_that_lives_on_after_it_could_not_let_the_guest_go_on_is_no_reason_for_the_guest_to_wait(
    guest: QemuProcess,
) -> None:
    with QemuMachine(str(guest.monitor_path), timeout=SHORT) as machine:
        machine.get_ready()
        assert machine.pause()
        os.kill(guest.pid, signal.SIGSTOP)
        try:
            with pytest.raises(MachineError, match="did not answer 'cont' within"):
                machine.resume()
            machine.close()
        finally:
            os.kill(guest.pid, signal.SIGCONT)
    while guest.status() != "running":
        guest.wait_event("RESUME")
    with parallel_fixedram.open_qemu(str(guest.monitor_path)) as machine:  # nobody holds the connection any more
        assert machine.pid == guest.pid


def test_a_guest_that_stands_still_is_not_saved_if_its_qemu_ends_meanwhile(image: list[str]) -> None:
    """Its memory may be another process's by then, and nobody is told to go on who would notice."""
    with QemuProcess(*image, ram=Ram(32 * MIB), paused=True) as own, QemuMachine(str(own.monitor_path)) as machine:
        machine.get_ready()
        assert not machine.pause()
        assert machine.device_state()
        own.kill()
        with pytest.raises(MachineError, match="its process has ended"):
            machine.resume()


def test_a_guest_that_somebody_else_stops_just_before_us_stays_stopped(guest: QemuProcess) -> None:
    with QemuMachine(str(guest.monitor_path)) as machine:
        machine.get_ready()
        assert machine.is_running()
        guest.stop()
        assert not machine.pause()
        machine.resume()
    assert guest.status() == "paused"
    guest.cont()
