"""Faults: writes that wait for a group, until they may go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.groups import Marked
from parallel_fixedram.engine.capture.snapshot.guesses import Guesses
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase
from parallel_fixedram.engine.capture.snapshot.pieces import Pieces
from parallel_fixedram.engine.capture.snapshot.protection import Protection
from parallel_fixedram.engine.capture.snapshot.protocol import Step, let_write
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.capture.snapshot.tallies import Tallies

Clock = Callable[[], float]
"""Tells the time, seconds."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A unit that a write waits for."""

    groups: range
    since: float
    steps: Iterator[Step] | None = None
    copied: int = 0
    without_room: bool = False


class Faults:
    """Serves faults according to the phase: before T notes them, after T copies first, and once all is captured lets
    them pass.

    Args:
        memory: the memory that they are in.
        copier: reads groups.
        marks: of all groups.
        ring: where copies go.
        link: to the spill writer.
        pieces: how much is done at a time.
        now: tells the time, seconds.

    Attributes:
        guesses: what will be written next.
        tallies: counts of what was done.
    """

    def __init__(
        self, memory: Protection, copier: GroupCopier, marks: Marks, ring: Ring, link: Link, pieces: Pieces, now: Clock
    ) -> None:
        self._memory = memory
        self._copier = copier
        self._marks = marks
        self._ring = ring
        self._link = link
        self._ahead_bytes = pieces.ahead_bytes
        self._now = now
        self._waiting: dict[int, _Waiting] = {}
        self._open = np.zeros(len(marks.noted), np.uint8)
        self.guesses = Guesses(memory, marks, ring, self._open, pieces)
        self.tallies = Tallies()

    def __len__(self) -> int:
        """Number of units that writes wait for."""
        return len(self._waiting)

    def add(self, faulted: Iterable[range]) -> None:
        """Note that writes wait for these units."""
        since = self._now()
        for groups in faulted:
            wider = self.guesses.with_more(groups)
            self._waiting.setdefault(wider.start, _Waiting(wider, since))

    def serve(self) -> float:
        """Serve what can be served; returns for how many seconds the oldest write has been waiting for room in the
        ring.

        Raises:
            HostError: a group cannot be read or released.
            MachineError: the guest's process has ended.
        """
        for each in list(self._waiting.values()):
            if self._advance(each):
                del self._waiting[each.groups.start]
        oldest = min((each.since for each in self._waiting.values()), default=self._now())
        return self._now() - oldest

    def begin_again(self) -> None:
        """Note that the phase has changed: faults that wait now are served according to the new one."""
        for each in self._waiting.values():
            each.steps = None

    def all_closed(self) -> None:
        """Note that all groups are protected again."""
        self._open[:] = 0

    def capturing(self) -> Iterator[bool]:
        """Release groups before a write has to wait for them.

        First copies those that were written just before T, because they will most probably be written again; then
        releases what is captured, again and again.

        Yields:
            True after every piece, False when nothing is left to do for now.
        """
        for groups in self._memory.pieces(self._ahead_bytes, self._expected):
            while len(groups) > self.guesses.room:
                yield from self._sweeping()
            self._copy_ahead(groups)
            yield True
        while True:
            yield from self._sweeping()

    def _sweeping(self) -> Iterator[bool]:
        """Release everything captured so far."""
        for groups in self._memory.unprotecting(self._superfluous):
            self._open[groups.start : groups.stop] = 1
            yield True
        yield False

    def _expected(self, part: slice) -> Marked:
        found: Marked = self._marks.noted[part] & (self._open[part] == 0)
        return found

    def _copy_ahead(self, groups: range) -> None:
        if self._open[groups.start : groups.stop].all():
            return  # released meanwhile, for a write that waited
        ahead = _Waiting(groups, self._now())
        for _ in self._steps(ahead):
            pass
        self._open[groups.start : groups.stop] = 1
        self.tallies.ahead += ahead.copied
        if ahead.copied:
            self._link.tell()

    def _superfluous(self, part: slice) -> Marked:
        """1 for every group of a slice of one block that is still protected, although it is captured or was zero."""
        done = self._marks.copied[part] | self._marks.written[part] | (self._copier.held(part) == 0)
        found: Marked = done & (self._open[part] == 0)
        return found

    def _advance(self, each: _Waiting) -> bool:
        """Go on with a unit; returns whether it may be written now."""
        if each.steps is None:
            each.steps = self._steps(each)
        for step in each.steps:
            if step is Step.NO_ROOM:
                self.tallies.ring_waits += not each.without_room
                each.without_room = True
                self._link.tell()
                return False
        self._open[each.groups.start : each.groups.stop] = 1
        if self._marks.phase[0] == Phase.CAPTURING:
            self.tallies.served(self._now() - each.since, copied=each.copied, uncopied=len(each.groups) - each.copied)
        if each.copied:
            self._link.tell()
        return True

    def _steps(self, each: _Waiting) -> Iterator[Step]:
        def copy(group: int, slot: Pages) -> None:
            self._copier.copy(group, slot)
            each.copied += 1

        groups, phase = each.groups, self._marks.phase[0]
        if phase < Phase.CAPTURING:
            self._marks.noted[groups.start : groups.stop] = 1  # before the write passes, to be protected again at T
        return let_write(
            self._marks,
            self._ring,
            groups if phase == Phase.CAPTURING else (),
            is_needed=self._is_needed,
            copy=copy,
            unprotect=lambda: self._memory.unprotect(groups),
        )

    def _is_needed(self, group: int) -> bool:
        return not self._marks.is_captured(group) and self._copier.holds(group)
