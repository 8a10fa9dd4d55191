"""A save, a restore and a look at the file, to be made again and again while something fails."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from support import faults, saving
from support.busy_guest import BusyGuest
from support.faults import Call, Decide, Fail, Kill, Lie, Run, Shorten
from support.leftovers import changed, files, nothing_left, own
from support.libvirt_images import XML
from support.pictures import content, draw

import parallel_fixedram
from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.protocols import AddressSpace
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.engine.capture import rounds
from parallel_fixedram.machines.ram_files import RamFile, RamFiles

RAM = {"pc.ram": "A" * 250 + "0b-" * 3 + "-" * 150 + "C" * 300 + "0" * 40 + "D" * 30 + "-", "vga.vram": "z"}
"""Three shards and one more: data, zero pages, holes, a half-used last bitmap word, a block of one page."""

UNLINKS = ("unlink", "unlinkat")
DEAD = b"what a dead writer left"
LEFT = "left open or unreaped:"


class Running(RamFiles):
    """RAM of a machine that says it runs, so that all pages are written before it is stopped, and compared then."""

    def is_running(self) -> bool:
        return True

    def pause(self) -> bool:
        return True


class Rounds(Running):
    """With a log that names ever fewer of its pages, of all kinds."""

    def dirty_source(self) -> Rounds:
        self._counts = iter((0, 300, 100, 8, 20))
        return self

    def sync(self, into: Sequence[PageBitmap]) -> int:
        into[0].set_range(PageRange(240, next(self._counts)))
        return 0


class Busy(Running):
    """With a process that writes to it, and whose writes can be made to wait."""

    guest: BusyGuest

    def address_space(self) -> AddressSpace:
        return self.guest.address_space()


class Domain(RamFiles):
    """As libvirt knows it."""

    def definition(self) -> bytes:
        return XML


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to save, and what lies there before."""

    capture: str = "stopped"
    machine: type[RamFiles] = RamFiles
    options: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    old: bytes = b""
    part: bytes = b""


WAYS = {
    "over an old file, direct": Way(options={"overwrite": True, "direct_io": "auto"}, old=b"old" * 9999),
    "a new file": Way(options={"direct_io": "off"}),
    "running, behind a prefix": Way(
        capture="compare",
        machine=Running,
        options={"overwrite": True, "direct_io": "off"},
        offset=8192,
        old=b"old" * 9999,
        part=DEAD,
    ),
    "in rounds": Way(capture="rounds", machine=Rounds, options={"mode": "rounds"}),
    "a snapshot": Way(capture="snapshot", machine=Busy, options={"direct_io": "off", "max_stall": 20.0}),
    "for libvirt": Way(machine=Domain, options={"direct_io": "off", "image": "libvirt"}),
}
MAIN_WAYS = list(WAYS)[:3]
"""Those in which a file is written, whoever captures it."""


class Stage:
    """A folder in memory with RAM to save, the file, and places to restore to."""

    def __init__(self, folder: str, way: Way) -> None:
        self.folder = folder
        self.way = way
        self.file, self.part = Path(folder, "vm.mr"), Path(folder, ".vm.mr.part")
        self.uri = f"file:{self.file},offset={way.offset}"
        self.ram = {idstr: f"{folder}/{idstr}" for idstr in RAM}
        self.restored = {idstr: f"{folder}/restored-{idstr}" for idstr in RAM}
        for idstr, picture in RAM.items():
            fill(self.ram[idstr], picture)
        self.before_save()
        with self.with_guest():
            assert self.save().choice.capture == way.capture
        assert parallel_fixedram.verify(self.uri, ram=self.ram).ok
        self.new = self.file.read_bytes()
        self.save_next()
        assert parallel_fixedram.verify(str(self.file), ram=self.ram).ok
        self.next = self.file.read_bytes()

    def before_save(self) -> None:
        """Let the folder look as the way to save wants it."""
        for path, there in ((self.file, self.way.old), (self.part, self.way.part)):
            path.unlink(missing_ok=True)
            if there:
                path.write_bytes(there)

    @contextlib.contextmanager
    def with_guest(self) -> Iterator[None]:
        """If there is one, it goes on whatever happens meanwhile, and nobody holds its writes back any more."""
        if self.way.machine is not Busy:
            yield
            return
        written = [[page for page, letter in enumerate(picture) if letter != "-"] for picture in RAM.values()]
        with BusyGuest(zip(self.ram.values(), written, strict=True)) as self.guest:
            yield
            self.guest.goes_on()
            assert not self.guest.is_watched()

    def save(self) -> SaveReport:
        """In rounds, if they are, though RAM is small; of the guest that there is."""
        on = {"channels": 2, "experimental_multifd": True, **self.way.options}
        with mock.patch.object(rounds, "SMALL_ROUND_PAGES", 16):
            return saving.save(self.machine, self.uri, **on)

    def machine(self) -> RamFiles:
        files = [RamFile(idstr=idstr, path=path) for idstr, path in self.ram.items()]
        machine = self.way.machine(files, name=RAM_ONLY_MACHINE)
        if isinstance(machine, Busy):
            machine.guest = self.guest
        return machine

    def before_restore(self, picture: str = "") -> None:
        """Remove what was restored; with a letter, make files full of it."""
        for idstr, path in self.restored.items():
            Path(path).unlink(missing_ok=True)
            Path(path).with_name(f".restored-{idstr}.part").unlink(missing_ok=True)
            if picture:
                fill(path, picture * len(RAM[idstr]))

    def restore(self) -> None:
        on = {"channels": 2, "experimental_multifd": True}
        saving.restore(self.uri, self.restored, check_digests=True, **on)

    def run(self, action: Callable[[], Any], decide: Decide, *, every_call: bool = False) -> Run:
        """Run under faults; whatever they are, the end is an orderly one, and nothing is left."""
        with nothing_left(files, seconds=0), self.with_guest():
            run = faults.run(lambda: leaving_nothing(action), under=self.folder, decide=decide, every_call=every_call)
        assert not run.hung, run.faults
        assert run.orphans == (), run.faults
        assert "Traceback" not in run.stderr, (run.faults, run.stderr)
        assert LEFT not in run.stderr, (run.faults, run.stderr)
        assert run.error is None or isinstance(run.error, FixedRamError), (run.faults, run.error)
        return run

    def check_saved(self, run: Run, *, published: bool) -> None:
        """The final name is the complete new file, or what it was before; and nothing of ours is left beside it."""
        there = self.file.read_bytes() if self.file.exists() else b""
        assert there == (self.new if published else self.way.old), (run.faults, run.error)
        if not run.hit(*UNLINKS) and self.part.exists():
            assert self.part.read_bytes() == DEAD, (run.faults, run.error)

    def save_next(self) -> None:
        saving.save(lambda: parallel_fixedram.open_ram(self.ram), str(self.file), overwrite=True)

    def check_next_save(self) -> None:
        """The next save of that name clears up what the last one could not."""
        self.save_next()
        assert not self.part.exists()
        assert self.file.read_bytes() == self.next

    def check_restored(self) -> None:
        for idstr, path in self.restored.items():
            assert Path(path).read_bytes() == content(RAM[idstr])

    def check_not_restored(self, *, kept: bool) -> None:
        """Of what was made nothing is left, and what was there still is."""
        found = {name for name in os.listdir(self.folder) if "restored-" in name}
        assert found == ({f"restored-{idstr}" for idstr in RAM} if kept else set())


def leaving_nothing(action: Callable[[], Any]) -> Any:
    """Do it, and complain of descriptors and processes that are there more than before, be the end what it may."""
    before = own()
    try:
        return action()
    finally:
        if left := changed(before, own()):
            print(LEFT, left, file=sys.stderr)


def fill(path: str, picture: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    draw(fd, picture)
    os.close(fd)


def in_turn(
    attempt: Callable[[Decide], Run],
    answer: Callable[[Call, Run], Fail | Shorten | Lie | Kill],
    *,
    names: Collection[str] = (),
    by_worker: bool | None = None,
    for_good: bool = False,
    every_site: bool = False,
    tried: set[tuple[object, ...]] | None = None,
) -> int:
    """Attempt with a fault at the first matching call that is new, and so on until there is none; returns how many.

    Args:
        attempt: one try, its checks included.
        answer: what to do to the call.
        names: calls that match; all if empty.
        by_worker: whether only calls of workers match, or only those of the coordinator.
        for_good: whether all later matching calls get the answer too.
        every_site: whether a call on a file is new at each site of our code, or once for all.
        tried: what is not new, and what was tried is added.
    """
    tried, count = set() if tried is None else tried, 0
    while True:

        def decide(call: Call, run: Run) -> Fail | Shorten | Lie | Kill | None:
            if (names and call.name not in names) or by_worker not in (None, call.by_worker):
                return None
            if run.faults:
                return answer(call, run) if for_good else None
            path = re.sub(r"\d", "#", call.path)  # names may have dates in them
            kind = (call.by_worker, call.name, path, call.site if every_site else None)
            if kind in tried:
                return None
            tried.add(kind)
            return answer(call, run)

        if not attempt(decide).faults:
            assert tried, "no call matched"
            return count
        count += 1


def at_each_call(
    attempt: Callable[[Decide], Run], answer: Callable[[Call, Run], Fail | Shorten | Lie | Kill], names: Collection[str]
) -> int:
    """Attempt with a fault at the first call of these names, at the second, and so on until there is none; how many."""
    for number in itertools.count():
        calls = itertools.count()

        def decide(call: Call, run: Run) -> Fail | Shorten | Lie | Kill | None:
            return answer(call, run) if call.name in names and next(calls) == number else None  # noqa: B023

        if not attempt(decide).faults:
            assert number, "no call matched"
            return number
    raise AssertionError
