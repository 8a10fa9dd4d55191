import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.scarce import with_descriptors
from support.watched import require_userfaultfd

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.protocols import DirtySource, Machine, Pages
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.host.memory.userfaultfd import PageFault, Userfaultfd
from parallel_fixedram.machines.builtin.process import MACHINE_NAME, GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload
from parallel_fixedram.machines.builtin.workload import BATCH_PAGES, Program, render


def booted(text: str) -> GuestProcess:
    return GuestProcess(GuestSpec.parse(text))


def ram_of(guest: GuestProcess) -> Pages:
    """RAM as the guest shares it, live."""
    return np.frombuffer(mmap.mmap(guest.memfd, guest.spec.size, prot=mmap.PROT_READ), np.uint64).reshape(-1, 512)


def fetch(guest: GuestProcess) -> list[PageRange]:
    bitmap = PageBitmap(guest.spec.pages)
    guest.log.sync([bitmap])
    return bitmap.ranges()


def wait_until_it_writes(guest: GuestProcess) -> None:
    while not fetch(guest):
        pass


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def private_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.parametrize("workload", Workload)
def test_its_ram_after_k_steps_is_the_twins_ram_after_k_steps(workload: Workload) -> None:
    with booted(f"{workload},size=3MiB,seed=11") as guest:
        ram = ram_of(guest)
        assert np.array_equal(ram, render(guest.spec))
        assert guest.run(3) == 3
        assert np.array_equal(ram, render(guest.spec, 3))
        guest.start()
        guest.pause()
        assert np.array_equal(ram, render(guest.spec, guest.steps))


@pytest.mark.parametrize("pages", [1, 63, 64, 65])
def test_a_guest_may_be_as_small_as_one_page(pages: int) -> None:
    with booted(f"hot,size={pages * 4096}") as guest:
        guest.run(2)
        assert np.array_equal(ram_of(guest), render(guest.spec, 2))


def test_a_huge_guest_that_touches_nothing_costs_nothing() -> None:
    with booted("zero,size=64GiB") as guest:
        guest.run(5)
        status = os.fstat(guest.memfd)
        assert (status.st_size, status.st_blocks) == (64 * GIB, 0)


def test_only_the_pages_it_writes_take_memory() -> None:
    with booted("random,size=8MiB,fraction=0.25") as guest:
        guest.run(20)
        assert os.fstat(guest.memfd).st_blocks * 512 == 2 * MIB


def test_its_private_memory_does_not_grow_with_its_ram() -> None:
    with booted("dense,size=4KiB") as small, booted("dense,size=64MiB") as large:
        assert abs(private_kib(large.pid) - private_kib(small.pid)) < 8 * 1024


def test_its_ram_cannot_change_its_size() -> None:
    with booted("zero,size=4KiB") as guest:
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(guest.memfd, size)


def test_it_is_a_machine_with_one_block_of_guest_ram() -> None:
    with booted("dense,size=1MiB,fraction=0.5") as guest:
        machine: Machine = guest
        source: DirtySource = guest.log
        (block,) = machine.guest_blocks()
        assert (machine.name, machine.device_state()) == (MACHINE_NAME, b"")
        assert (block.block.idstr, block.block.used_length, block.block.pages) == ("pc.ram", MIB, 256)
        assert block.source.data_ranges(PageRange(0, 256)) == [PageRange(0, 128)]
        assert source.sync([PageBitmap(256)]) == 128
        block.source.open()
        assert np.array_equal(block.source.pages(0, 128), render(guest.spec)[:128])
        block.source.close()


def test_after_booting_it_stands_still() -> None:
    with booted("dense,size=1MiB") as guest:
        assert fetch(guest) == [PageRange(0, 256)]
        guest.pause()
        assert guest.steps == 0
        assert not fetch(guest)


def test_a_paused_guest_writes_nothing() -> None:
    with booted("hot,size=4MiB") as guest:
        fetch(guest)  # what booting wrote
        guest.start()
        wait_until_it_writes(guest)
        guest.pause()
        fetch(guest)
        ram, steps = ram_of(guest).copy(), guest.steps
        guest.pause()
        assert guest.steps == steps > 0
        assert not fetch(guest)
        assert np.array_equal(ram_of(guest), ram)


def test_a_resumed_guest_goes_on_where_it_stood() -> None:
    with booted("sweep,size=4MiB") as guest:
        fetch(guest)  # what booting wrote
        guest.start()
        wait_until_it_writes(guest)
        guest.pause()
        fetch(guest)
        steps = guest.steps
        guest.resume()
        wait_until_it_writes(guest)
        guest.pause()
        assert guest.steps > steps
        assert np.array_equal(ram_of(guest), render(guest.spec, guest.steps))


def test_resuming_leaves_a_guest_still_that_stood_still_before_it_was_paused() -> None:
    with booted("dense,size=1MiB") as guest:
        assert not guest.pause()
        guest.resume()
        assert guest.run(1) == 1  # a running guest would refuse


def test_pausing_twice_is_undone_by_resuming_once_and_resuming_twice_does_no_harm() -> None:
    with booted("dense,size=1MiB") as guest:
        guest.start()
        assert guest.pause()
        assert not guest.pause()
        guest.resume()
        guest.resume()
        with pytest.raises(MachineError, match="is running freely"):
            guest.run(1)


def test_a_guest_with_a_number_of_steps_idles_after_them() -> None:
    with booted("hot,size=1MiB,steps=5") as guest:
        guest.start()
        while guest.steps < 5:
            guest.pause()
            guest.resume()
        guest.pause()
        assert guest.steps == 5
        assert np.array_equal(ram_of(guest), render(guest.spec, 5))


def test_a_rate_holds_a_guest_back_but_not_its_answers() -> None:
    with booted("dense,size=1MiB,rate=1") as guest:  # one step in twelve days
        guest.start()
        guest.pause()
        guest.resume()
        guest.pause()
        assert guest.steps == 0


def test_a_guest_within_its_rate_does_all_its_steps() -> None:
    with booted("dense,size=1MiB,rate=1GiB") as guest:
        assert guest.run(10) == 10


@pytest.mark.slow
def test_a_live_copy_driven_by_the_dirty_log_loses_no_update() -> None:
    with booted("hot,size=4MiB,seed=3") as guest:
        ram = ram_of(guest)
        copy = np.zeros_like(ram)

        def copy_round() -> int:
            ranges = fetch(guest)
            for pages in ranges:
                copy[pages.first : pages.end] = ram[pages.first : pages.end]
            return len(ranges)

        guest.start()
        busy_rounds = 0
        while busy_rounds < 300:
            busy_rounds += copy_round() > 0
        guest.pause()
        copy_round()
        assert np.array_equal(copy, ram)
        assert np.array_equal(copy, render(guest.spec, guest.steps))


def test_every_page_of_a_step_is_in_the_log() -> None:
    with booted("dense,size=8MiB") as guest:
        fetch(guest)
        twin, program = render(guest.spec), Program(guest.spec)
        for number in range(1, 10):
            guest.run(1)
            bitmap = PageBitmap(guest.spec.pages)
            bitmap.set_pages(program.step(twin, number))
            assert fetch(guest) == bitmap.ranges()
            assert bitmap.count() <= BATCH_PAGES


@pytest.mark.parametrize("action", [GuestProcess.pause, GuestProcess.start, lambda guest: guest.run(1)])
def test_a_killed_guest_is_reported_in_one_line(action: Callable[[GuestProcess], object]) -> None:
    with booted("dense,size=1MiB") as guest:
        pid = guest.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(MachineError, match=f"^guest process {pid} was killed by SIGKILL$"):
            action(guest)
        with pytest.raises(MachineError, match=r"^the guest's process is gone$"):
            action(guest)


def test_a_guest_killed_while_paused_is_reported_by_resume() -> None:
    with booted("dense,size=1MiB") as guest:
        guest.start()
        guest.pause()
        os.kill(guest.pid, signal.SIGKILL)
        with pytest.raises(MachineError, match="was killed by SIGKILL"):
            guest.resume()


def test_a_stopped_guest_does_not_hold_up_its_saver_for_ever() -> None:
    with GuestProcess(GuestSpec.parse("hot,size=1MiB"), answer_seconds=0.05) as guest:
        guest.start()
        os.kill(guest.pid, signal.SIGSTOP)
        with pytest.raises(MachineError, match=r"did not answer within 0\.05 s"):
            guest.pause()
        os.kill(guest.pid, signal.SIGCONT)
        guest.resume()  # the late answer is not taken for this one's
        guest.pause()
        assert np.array_equal(ram_of(guest), render(guest.spec, guest.steps))


def test_a_guest_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def burn(*_: object) -> Iterator[None]:
        raise RuntimeError("no boot device")
        yield

    monkeypatch.setattr(Program, "boot", burn)
    before = open_descriptors()
    with pytest.raises(MachineError, match="failed: unexpected RuntimeError: no boot device"):
        GuestProcess(GuestSpec.parse("dense,size=1MiB"))
    assert open_descriptors() == before


def test_a_guest_that_would_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(HostError, match=r"the guest writes 64\.0 TiB of RAM, but only"):
        GuestProcess(GuestSpec.parse("dense,size=64TiB"))


def test_closing_leaves_no_process_and_no_descriptor() -> None:
    before = open_descriptors()
    with booted("dense,size=1MiB") as guest:
        guest.start()
        guest.guest_blocks()
        pid = guest.pid
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
    guest.close()


def test_a_guest_keeps_none_of_its_parents_descriptors() -> None:
    read_end, write_end = os.pipe()
    with booted("zero,size=4KiB"):
        os.close(write_end)
        assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_an_interrupt_from_the_keyboard_does_not_end_the_guest() -> None:
    with booted("dense,size=1MiB") as guest:
        os.kill(guest.pid, signal.SIGINT)
        assert guest.run(1) == 1


def test_a_guest_ends_with_the_process_that_made_it_even_if_workers_live_on() -> None:
    program = (
        "from parallel_fixedram.machines.builtin.process import *\n"
        "guest = GuestProcess(GuestSpec.parse('dense,size=1MiB'))\n"
        "guest.start()\n"
        "print(guest.pid, flush=True)\n"
        "os.fork()  # a worker, which keeps the guest's socket open\n"
        "input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        guest = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        ended, _, _ = select.select([guest], [], [], 10)
        os.close(guest)
    assert ended


def test_it_says_that_there_is_no_room_for_its_userfaultfd() -> None:
    require_userfaultfd()
    with GuestProcess(GuestSpec.parse("zero,size=1MiB")) as guest:
        with pytest.raises(HostError, match="no room for another descriptor"):
            with_descriptors(0, guest.userfaultfd)
        guest.userfaultfd()[0].close()


def test_it_gives_away_a_userfaultfd_that_holds_its_writes() -> None:
    require_userfaultfd()
    with booted("dense,size=1MiB") as guest:
        userfaultfd, address = guest.userfaultfd()
        assert not os.get_inheritable(userfaultfd.fileno())
        with closing(userfaultfd):
            userfaultfd.enable()
            userfaultfd.register(address, MIB)
            userfaultfd.protect(address, MIB)
            guest.start()
            poll = select.poll()
            poll.register(userfaultfd.fileno(), select.POLLIN)
            assert poll.poll(20000)
            [fault] = userfaultfd.read()
            assert isinstance(fault, PageFault)
            assert address <= fault.address < address + MIB
        assert guest.pause(), "it goes on, and so comes to hear this"


def test_a_guest_that_may_not_have_a_userfaultfd_says_so_and_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise HostError("cannot get a userfaultfd", errno=1)

    monkeypatch.setattr(Userfaultfd, "open_own", refuse)
    with booted("dense,size=1MiB") as guest:
        with pytest.raises(HostError, match="cannot get a userfaultfd") as raised:
            guest.userfaultfd()
        assert raised.value.errno == 1
        assert guest.run(2) == 2
