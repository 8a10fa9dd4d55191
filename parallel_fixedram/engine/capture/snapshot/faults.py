"""Faults: those who wait to write a group, until they may."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.groups import Marked
from parallel_fixedram.engine.capture.snapshot.guesses import Guesses
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase
from parallel_fixedram.engine.capture.snapshot.protection import Protection
from parallel_fixedram.engine.capture.snapshot.protocol import Step, let_write
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.capture.snapshot.tallies import Tallies

NOTED_BYTES = 2 << 20
"""Memory that is let go together before T, when that costs no copy: who writes in many places waits less often."""

AHEAD_BYTES = 1 << 20
"""Memory that is copied ahead, before anybody waits for it, without looking whether somebody waits for other memory."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A unit that somebody waits to write."""

    groups: range
    since: float
    steps: Iterator[Step] | None = None
    copied: int = 0
    without_room: bool = False


class Faults:
    """Serves faults as the phase demands: notes them before T, copies after it, lets them through when all is captured.

    Args:
        memory: whose faults they are.
        copier: reads groups.
        marks: of all groups.
        ring: where copies go.
        link: to the spill writer.

    Attributes:
        guesses: what will be written next.
        tallies: what was done.
    """

    def __init__(self, memory: Protection, copier: GroupCopier, marks: Marks, ring: Ring, link: Link) -> None:
        self._memory = memory
        self._copier = copier
        self._marks = marks
        self._ring = ring
        self._link = link
        self._waiting: dict[int, _Waiting] = {}
        self._open = np.zeros(len(marks.noted), np.uint8)
        self.guesses = Guesses(memory, marks, ring, self._open)
        self.tallies = Tallies()

    def __len__(self) -> int:
        """How many units are waited for."""
        return len(self._waiting)

    def add(self, faulted: Iterable[range]) -> None:
        """Somebody waits for these."""
        now = time.monotonic()
        for groups in faulted:
            wider = self._with_more(groups)
            self._waiting.setdefault(wider.start, _Waiting(wider, now))

    def _with_more(self, groups: range) -> range:
        """The groups that somebody waits for, and what is let go with them."""
        phase = self._marks.phase[0]
        if phase < Phase.CAPTURING:
            return self._memory.around(groups, NOTED_BYTES)
        return self.guesses.with_those_behind(groups) if phase == Phase.CAPTURING else groups

    def serve(self) -> float:
        """Do what can be done; returns for how many seconds the one that waits longest has waited for room in the ring.

        Raises:
            HostError: a group cannot be read, or not be let go.
            MachineError: the guest's process has ended.
        """
        for each in list(self._waiting.values()):
            if self._advance(each):
                del self._waiting[each.groups.start]
        oldest = min((each.since for each in self._waiting.values()), default=time.monotonic())
        return time.monotonic() - oldest

    def begin_again(self) -> None:
        """The phase has changed: whoever waits now is served as the new one demands."""
        for each in self._waiting.values():
            each.steps = None

    def all_closed(self) -> None:
        """All groups are protected again."""
        self._open[:] = 0

    def capturing(self) -> Iterator[bool]:
        """Again and again, let go of what can be let go before somebody has to wait for it.

        First copy what was written just before T: that will most probably be written again.

        Yields:
            True after every piece, False when nothing is left to do for now.
        """
        for groups in self._memory.pieces(AHEAD_BYTES, self._expected):
            while len(groups) > self.guesses.room:
                yield from self._sweeping()
            self._copy_ahead(groups)
            yield True
        while True:
            yield from self._sweeping()

    def _sweeping(self) -> Iterator[bool]:
        """Let go of all that is captured by now."""
        for groups in self._memory.unprotecting(self._superfluous):
            self._open[groups.start : groups.stop] = 1
            yield True
        yield False

    def _expected(self, part: slice) -> Marked:
        found: Marked = self._marks.noted[part] & (self._open[part] == 0)
        return found

    def _copy_ahead(self, groups: range) -> None:
        if self._open[groups.start : groups.stop].all():
            return  # somebody was quicker
        ahead = _Waiting(groups, time.monotonic())
        for _ in self._steps(ahead):
            pass
        self._open[groups.start : groups.stop] = 1
        self.tallies.ahead += ahead.copied
        if ahead.copied:
            self._link.tell()

    def _superfluous(self, part: slice) -> Marked:
        """1 for every group, of a part of one block, that is protected, though it is captured or held nothing."""
        done = self._marks.copied[part] | self._marks.written[part] | (self._copier.held(part) == 0)
        found: Marked = done & (self._open[part] == 0)
        return found

    def _advance(self, each: _Waiting) -> bool:
        """Go on with a unit; whether it may be written by now."""
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
            self.tallies.served(each.since, copied=each.copied, uncopied=len(each.groups) - each.copied)
        if each.copied:
            self._link.tell()
        return True

    def _steps(self, each: _Waiting) -> Iterator[Step]:
        def copy(group: int, slot: Pages) -> None:
            self._copier.copy(group, slot)
            each.copied += 1

        groups, phase = each.groups, self._marks.phase[0]
        if phase < Phase.CAPTURING:
            self._marks.noted[groups.start : groups.stop] = 1
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
