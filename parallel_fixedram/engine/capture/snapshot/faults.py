"""Faults: writes that wait for a group, until they may go on.

A guest that writes one group after the other would wait at each, ten times as long as the copy takes (measured). So the
groups behind a faulting one are copied and released along with it, twice as many each time, as in reading ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.groups import Marked
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase
from parallel_fixedram.engine.capture.snapshot.protection import Protection
from parallel_fixedram.engine.capture.snapshot.protocol import Step, let_write
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.capture.snapshot.tallies import Tallies

MOST_AHEAD = 7
"""Most groups that are copied along with the faulting one; each makes the write wait for a tenth of a millisecond."""


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

    Attributes:
        tallies: counts of what was done.
    """

    def __init__(self, memory: Protection, copier: GroupCopier, marks: Marks, ring: Ring, link: Link) -> None:
        self._memory = memory
        self._copier = copier
        self._marks = marks
        self._ring = ring
        self._link = link
        self._waiting: dict[int, _Waiting] = {}
        self._open = np.zeros(len(marks.noted), np.uint8)
        self._next: int | None = None
        self._more = 0
        self.tallies = Tallies()

    def __len__(self) -> int:
        """Number of units that writes wait for."""
        return len(self._waiting)

    def add(self, faulted: Iterable[range]) -> None:
        """Note that writes wait for these units."""
        now = time.monotonic()
        for groups in faulted:
            self._waiting.setdefault(groups.start, _Waiting(self._with_more(groups), now))

    def _with_more(self, groups: range) -> range:
        """The groups that a write waits for, and those behind them that will probably be written next."""
        if self._marks.phase[0] != Phase.CAPTURING:
            return groups
        in_turn = self._next is not None and groups.start - self._next >= 0 and self._is_open(self._next, groups.start)
        room = max(self._ring.slots // 2 - len(self._ring), 0)  # guesses must not fill the ring
        self._more = min(2 * self._more + 1, MOST_AHEAD, room) if in_turn else 0
        found = self._memory.longer(groups, self._more)
        self._next = found.stop
        return found

    def _is_open(self, start: int, stop: int) -> bool:
        """Whether all these groups may be written without waiting."""
        return stop - start <= MOST_AHEAD and bool(self._open[start:stop].all())

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
        oldest = min((each.since for each in self._waiting.values()), default=time.monotonic())
        return time.monotonic() - oldest

    def begin_again(self) -> None:
        """Note that the phase has changed: faults that wait now are served according to the new one."""
        for each in self._waiting.values():
            each.steps = None

    def all_closed(self) -> None:
        """Note that all groups are protected again."""
        self._open[:] = 0

    def sweeping(self) -> Iterator[bool]:
        """Release what is captured, before a write has to wait for it; again and again.

        Yields:
            True after every piece, False after every pass over all memory.
        """
        while True:
            for groups in self._memory.unprotecting(self._superfluous):
                self._open[groups.start : groups.stop] = 1
                yield True
            yield False

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
