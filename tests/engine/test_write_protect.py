"""A save by snapshot, of the built-in guest: what its RAM is after so many steps, its twin knows."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from support.examples import unless_thorough
from support.saving import save, several
from support.watched import require_userfaultfd

from parallel_fixedram.core.errors import HostError, MachineChanged, SnapshotFailed
from parallel_fixedram.core.protocols import AddressSpace, GuestBlock
from parallel_fixedram.core.save_options import CaptureMode, DirectIO
from parallel_fixedram.engine.capture.snapshot.snapshot import Snapshot
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.builtin.process import RAM_IDSTR, GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.builtin.workload import render
from parallel_fixedram.verbs.save import MOST_SAVES

TORN, AGAIN = "somebody let the guest go on", "the save began again"
SNAPSHOT, AUTO = CaptureMode.SNAPSHOT, CaptureMode.AUTO
DENSE, SPARSE = GUESTS = ("dense,size=3MiB,seed=3", "random,size=10MiB,seed=4,fraction=0.2")
ON, OFF = DIRECT = (DirectIO.ON, DirectIO.OFF)
PAIRS = [(DENSE, 1, ON), (DENSE, 2, OFF), (SPARSE, 1, OFF), (SPARSE, 2, ON)]


class Guest:
    """A built-in guest that runs; somebody may act on it while it is saved.

    Attributes:
        instants: steps done at each pause.
        torn: what is said of each instant.
        acts: done when it is about to go on, one at each pause.
        space: says how its memory is reached, or that it is not.
    """

    def __init__(self, text: str) -> None:
        self.process = GuestProcess(GuestSpec.parse(text))
        self.instants: list[int] = []
        self.torn: list[str | None] = []
        self.acts: list[Callable[[], object]] = []
        self.main = True
        self.space: Callable[[], AddressSpace] = self.process.address_space

    def __enter__(self) -> Guest:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    def guest_blocks(self) -> list[GuestBlock]:
        return [replace(each, main=self.main) for each in self.process.guest_blocks()]

    def address_space(self) -> AddressSpace:
        return self.space()

    def resume(self) -> str | None:
        if self.acts:
            self.acts.pop(0)()
        self.instants.append(self.process.steps)
        self.process.resume()
        return self.torn.pop(0) if self.torn else None

    def goes_on(self) -> bool:
        """Whether it runs, and writes what it wants; then it stands still, and takes no time from what is read next."""
        before = self.instants[-1] if self.instants else 0
        while self.process.pause() and self.process.steps <= before:
            self.process.start()
        return self.process.steps > before

    def is_in(self, target: str) -> bool:
        """Whether a file is what its RAM was at the last instant; it stands still from now on."""
        self.process.pause()
        with open_image(target) as image:
            assert verify(image, channels=1).ok
            pages = self.process.spec.pages
            found = image.read_pages(RAM_IDSTR, first=0, count=pages)
        return bytes(found) == render(self.process.spec, self.instants[-1]).tobytes()


@pytest.fixture
def guest() -> Iterator[Guest]:
    require_userfaultfd()
    with Guest("hot,size=2MiB") as guest:
        yield guest


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """The snapshots that have come to their instant."""
    found: list[Snapshot] = []
    real = Snapshot.fix

    def fix(self: Snapshot) -> None:
        found.append(self)
        real(self)

    monkeypatch.setattr(Snapshot, "fix", fix)
    return found


@pytest.mark.parametrize(("text", "channels", "direct"), unless_thorough(PAIRS, product(GUESTS, (1, 2), DIRECT)))
def test_the_file_is_ram_at_one_step(target: str, text: str, channels: int, direct: DirectIO) -> None:
    require_userfaultfd()
    with Guest(text) as guest:
        report = save(guest, target, several(channels=channels, direct_io=direct, mode=SNAPSHOT))
        assert guest.goes_on()
        assert guest.is_in(target)
    [one] = report.rounds
    [block] = report.blocks
    assert (report.choice.capture, one.while_running, one.written_pages) == ("snapshot", True, block.data_pages)
    assert report.bytes.written >= block.data_pages * block.page_size
    assert not any(AGAIN in note for note in report.notes)


def test_auto_takes_it(target: str, guest: Guest) -> None:
    assert save(guest, target, several(mode=AUTO)).choice.capture == "snapshot"
    assert guest.is_in(target)


@pytest.mark.parametrize("mode", [SNAPSHOT, AUTO])
def test_a_torn_instant_is_taken_again_from_the_beginning(target: str, guest: Guest, mode: CaptureMode) -> None:
    """Copies of the torn one are in its file: the next one gets a new file."""
    guest.torn = [TORN]
    report = save(guest, target, several(mode=mode))
    assert len(guest.instants) == 2
    assert guest.is_in(target)
    assert report.choice.capture == "snapshot"
    assert f"{TORN} while it was being saved: {AGAIN}" in report.notes


@pytest.mark.slow
def test_an_instant_that_is_torn_every_time_is_an_error_that_leaves_nothing(target: str, guest: Guest) -> None:
    guest.torn = [TORN] * 10
    with pytest.raises(MachineChanged, match=f"{TORN} while it was being saved, {MOST_SAVES} times"):
        save(guest, target, several(mode=SNAPSHOT))
    assert os.listdir(os.path.dirname(target)) == []
    assert guest.goes_on()


@pytest.mark.parametrize("mode", [SNAPSHOT, AUTO])
def test_a_snapshot_that_comes_to_nothing_is_an_error_or_a_comparison(
    target: str, guest: Guest, taken: list[Snapshot], mode: CaptureMode
) -> None:
    def kill_handler() -> None:
        processes = taken[-1]._processes
        assert processes is not None
        os.kill(processes._handler.pid, signal.SIGKILL)

    guest.acts = [kill_handler]
    if mode is SNAPSHOT:
        with pytest.raises(SnapshotFailed, match=r"was killed by SIGKILL|has ended"):
            save(guest, target, several(mode=mode))
        assert os.listdir(os.path.dirname(target)) == []
    else:
        report = save(guest, target, several(mode=mode))
        assert report.choice.capture == "compare"
        assert any(AGAIN in note for note in report.notes)
        assert report.snapshot is None
    assert guest.goes_on()
    assert mode is SNAPSHOT or guest.is_in(target)


@pytest.mark.parametrize("begun", [False, True], ids=["before", "after the file is there"])
@pytest.mark.parametrize("mode", [SNAPSHOT, AUTO])
def test_what_cannot_be_watched_is_refused_or_compared(
    target: str, guest: Guest, mode: CaptureMode, begun: bool
) -> None:
    def refuse() -> Any:
        raise HostError("it may not be watched", errno=1)

    space = AddressSpace(watch=refuse, has_answered=lambda: None)
    guest.space = (lambda: space) if begun else refuse
    if mode is SNAPSHOT:
        with pytest.raises(HostError, match="it may not be watched"):
            save(guest, target, several(mode=mode))
        assert os.listdir(os.path.dirname(target)) == []
    else:
        report = save(guest, target, several(mode=mode))
        assert report.choice.capture == "compare"
        assert any("it may not be watched" in each for each in (*report.notes, *report.choice.why))
    assert guest.goes_on()
    assert mode is SNAPSHOT or guest.is_in(target)


def test_auto_leaves_alone_what_nobody_has_proven(target: str, guest: Guest) -> None:
    space = replace(guest.process.address_space(), unproven="nobody has tried it")
    guest.space = lambda: space
    report = save(guest, target, several(mode=AUTO))
    assert report.choice.why[0] == "compare: no snapshot, because nobody has tried it"
    assert save(guest, target, several(mode=SNAPSHOT, overwrite=True)).choice.capture == "snapshot"
    assert guest.is_in(target)


def test_a_small_block_that_takes_no_protection_is_read_in_the_pause(
    target: str, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is not small, this would be a pause that grows with it."""

    def register(*_: object) -> None:
        raise HostError("this memory cannot be write-protected")

    monkeypatch.setattr(Userfaultfd, "register", register)
    guest.main = False
    report = save(guest, target, several(mode=SNAPSHOT))
    assert guest.is_in(target)
    assert [each.while_running for each in report.rounds] == [False, True]
    with Guest("hot,size=12MiB") as larger:
        with pytest.raises(SnapshotFailed, match="cannot be write-protected"):
            save(larger, target, several(mode=SNAPSHOT, overwrite=True))
        assert larger.goes_on()


def test_a_device_that_is_full_is_no_reason_to_begin_again(
    target: str, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(self: Snapshot) -> None:
        raise HostError("cannot write", errno=28)

    monkeypatch.setattr(Snapshot, "end", end)
    with pytest.raises(HostError, match="no space left on device") as caught:
        save(guest, target, several(mode=AUTO))
    assert not isinstance(caught.value, SnapshotFailed)
    assert len(guest.instants) == 1
    assert os.listdir(os.path.dirname(target)) == []
    assert guest.goes_on()
