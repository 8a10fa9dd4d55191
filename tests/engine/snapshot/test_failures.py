"""Whatever dies, hangs or fails, and whenever: the process whose memory it is goes on, and nothing is left behind.

A file that is not the memory at T never passes for one: the snapshot says that it is void, and why.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from support.captured_ram import Capture, Ram
from support.channels import DeadlyChannel, FailingChannel
from support.examples import some_of

from parallel_fixedram.core.errors import FixedRamError, HostError, WorkerError
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.marks import Phase
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.host.processes import forked

PAGES = 640
LONG = 30.0

STRIKES = [
    (Userfaultfd, "protect", Phase.PROTECTING),
    (Userfaultfd, "unprotect", Phase.PROTECTED),
    (Userfaultfd, "protect", Phase.PROTECTED),
    (GroupCopier, "copy", Phase.CAPTURING),
    (Userfaultfd, "unprotect", Phase.CAPTURING),
    (Userfaultfd, "unregister", Phase.RELEASING),
    (Userfaultfd, "close", Phase.RELEASING),
]
"""Where the handler is hit, and in which phase."""


@pytest.fixture
def ram() -> Iterator[Ram]:
    """The process writes all of its memory in the end, and nobody watches it."""
    with Ram(PAGES) as ram:
        ram.fill(range(PAGES))
        yield ram
        ram.fill(range(PAGES), value=9)
        assert not ram.is_watched()


def strike(
    monkeypatch: pytest.MonkeyPatch, capture: Capture, owner: type, name: str, phase: Phase, signum: int
) -> None:
    """Have the handler send itself a signal when it is about to call that in this phase."""
    real, test, now = getattr(owner, name), os.getpid(), capture.snapshot._marks.phase

    def call(*arguments: object) -> object:
        if os.getpid() != test and now[0] == phase:
            os.kill(os.getpid(), signum)
        return real(*arguments)

    monkeypatch.setattr(owner, name, call)


def all_of_it(ram: Ram, capture: Capture) -> None:
    """A capture of a process that writes before T, behind it, and in the end."""
    capture.protect()
    ram.fill([5], value=2)
    capture.fix()
    ram.fill([5, 100], value=3)
    capture.work()
    capture.snapshot.end()
    ram.fill([5, 200], value=4)


@pytest.mark.parametrize(("owner", "name", "phase"), STRIKES)
@pytest.mark.parametrize("signum", some_of([signal.SIGKILL, signal.SIGSTOP], 2))
def test_a_handler_that_dies_or_goes_deaf_costs_the_snapshot_unless_all_is_captured(
    ram: Ram, owner: type, name: str, phase: Phase, signum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Capture(ram, max_stall=20.0 if signum == signal.SIGKILL else 0.4) as capture:
        strike(monkeypatch, capture, owner, name, phase, signum)
        if phase == Phase.RELEASING:
            all_of_it(ram, capture)
            assert capture.snapshot.finish() is None
            capture.check()
        else:
            why = "was killed by SIGKILL" if signum == signal.SIGKILL else "did not answer in time and was killed"
            with pytest.raises(HostError, match=r"the snapshot is void|the process that serves"):
                all_of_it(ram, capture)
            ram.fill(range(PAGES), value=5)
            assert capture.processes._handler.has_ended(LONG)
            assert why in str(capture.snapshot.cause())


@pytest.mark.parametrize("successes", [0, 1, 2])
def test_a_copy_that_cannot_be_written_names_the_error(ram: Ram, successes: int) -> None:
    failing: list[FailingChannel] = []

    def wrap(inner: Channel) -> Channel:
        failing.append(FailingChannel(inner, errno=errno.ENOSPC, successes=successes))
        return failing[0]

    with Capture(ram, wrap_spill=wrap) as capture:
        capture.protect()
        capture.fix()
        ram.fill(range(PAGES), value=2)
        with pytest.raises(HostError) as raised:
            capture.work_and_end()
        assert errno.ENOSPC in (raised.value.errno, getattr(capture.snapshot.cause(), "errno", 0))
    failing[0].close()


def test_a_spill_writer_that_dies_costs_the_snapshot(ram: Ram) -> None:
    deadly: list[DeadlyChannel] = []

    def wrap(inner: Channel) -> Channel:
        deadly.append(DeadlyChannel(inner, Capture.layout_of(ram).blocks[0].page_offset(200)))
        return deadly[0]

    with Capture(ram, wrap_spill=wrap) as capture:
        capture.protect()
        capture.fix()
        ram.fill(range(PAGES), value=2)
        with pytest.raises(HostError):
            capture.work_and_end()
        assert str(capture.snapshot.cause()) == "the process that writes spilled pages was killed by SIGKILL"
    deadly[0].close()


def test_who_waits_for_a_spill_writer_that_hangs_goes_on_after_a_while(ram: Ram) -> None:
    with Capture(ram, slots=1, max_stall=0.4) as capture:
        capture.protect()
        capture.fix()
        os.kill(capture.processes._spill.pid, signal.SIGSTOP)
        ram.fill(range(PAGES), value=2)
        with pytest.raises(HostError, match="written more slowly than the guest writes its memory"):
            capture.work()


def test_a_worker_that_cannot_write_ends_it(ram: Ram) -> None:
    failing: list[FailingChannel] = []

    def wrap(inner: Channel) -> Channel:
        failing.append(FailingChannel(inner, errno=errno.EIO, successes=1))
        return failing[0]

    with Capture(ram, wrap=wrap) as capture:
        capture.protect()
        capture.fix()
        with pytest.raises(HostError) as raised:
            capture.work()
        assert raised.value.errno == errno.EIO
    failing[0].close()


def test_a_snapshot_that_nobody_watched_is_void(ram: Ram) -> None:
    with Capture(ram) as capture:
        capture.protect()
        os.kill(capture.processes._watchdog.pid, signal.SIGKILL)
        forked.has_ended(capture.processes._watchdog._pidfd, LONG)
        capture.fix()
        capture.work()
        with pytest.raises(WorkerError, match="nobody watched"):
            capture.snapshot.end()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_process_that_cannot_be_started_is_an_error_that_leaves_nothing(
    ram: Ram, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fork, [number]

    def fork() -> int:
        if left[0] == 0:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left[0] -= 1
        return real()

    with Capture(ram) as capture:
        monkeypatch.setattr(os, "fork", fork)
        with pytest.raises(HostError) as raised:
            capture.protect()
        monkeypatch.undo()
        assert raised.value.errno == errno.EAGAIN


def test_guest_memory_that_cannot_be_reached_is_an_error_that_leaves_nothing(ram: Ram) -> None:
    class Unreachable(MappedSource):
        def open(self) -> None:
            raise HostError("cannot map guest RAM", errno=errno.ENOMEM)

    ram.sources[0].close()
    ram.sources[0] = Unreachable(ram.fd, length=ram.blocks[0].used_length)
    with Capture(ram) as capture, pytest.raises(HostError, match="cannot map guest RAM") as raised:
        capture.protect()
    assert raised.value.errno == errno.ENOMEM
    ram.sources[0].close()


STAGES: dict[str, Callable[[Capture], object]] = {
    "prepared": lambda capture: capture.snapshot.prepare(),
    "protected": lambda capture: capture.protect(),
    "at T": lambda capture: (capture.protect(), capture.fix()),
    "captured": lambda capture: (capture.protect(), capture.fix(), capture.work()),
    "ended": lambda capture: (capture.protect(), capture.fix(), capture.work_and_end()),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_coordinator_that_is_killed_takes_its_processes_along_and_the_guest_goes_on(ram: Ram, stage: str) -> None:
    told, tell = os.pipe()
    coordinator = os.fork()
    if coordinator == 0:
        try:
            capture = Capture(ram)
            STAGES[stage](capture)
            one = capture.processes
            os.write(tell, f"{one._handler.pid} {one._spill.pid} {one._watchdog.pid}".encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    ram.watched.uffd.close()  # ours; theirs is what holds the guest's writes
    pidfds = [os.pidfd_open(int(pid)) for pid in os.read(told, 100).split()]
    ram.begin_writing(range(PAGES))
    os.kill(coordinator, signal.SIGKILL)
    os.waitpid(coordinator, 0)
    assert len(pidfds) == 3
    assert all(forked.has_ended(each, LONG) for each in pidfds)
    assert ram.halt()
    for each in (told, *pidfds):
        os.close(each)


REST: dict[str, Callable[[Capture], object]] = {
    "protected": lambda capture: (capture.fix(), capture.work_and_end()),
    "at T": lambda capture: capture.work_and_end(),
    "captured": lambda capture: capture.snapshot.end(),
}


@pytest.mark.parametrize("who", ["_handler", "_spill", "_watchdog"])
@pytest.mark.parametrize("stage", some_of(REST, 2))
def test_a_process_that_is_killed_between_two_steps_costs_the_snapshot_alone(ram: Ram, who: str, stage: str) -> None:
    with Capture(ram) as capture:
        STAGES[stage](capture)
        ram.begin_writing(range(PAGES))
        killed = os.pidfd_open(getattr(capture.processes, who).pid)
        signal.pidfd_send_signal(killed, signal.SIGKILL)
        assert forked.has_ended(killed, LONG)
        os.close(killed)
        assert ram.halt()
        with pytest.raises(FixedRamError):
            REST[stage](capture)
