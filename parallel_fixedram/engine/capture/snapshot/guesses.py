"""Guesses: what the guest will write next, and how much of it may be copied in advance.

A guest that writes one group after the other would wait at each, ten times as long as the copy takes (measured). So the
groups behind a faulting one are copied and released along with it, twice as many each time, as in reading ahead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase
from parallel_fixedram.engine.capture.snapshot.pieces import Pieces
from parallel_fixedram.engine.capture.snapshot.protection import Protection
from parallel_fixedram.engine.capture.snapshot.ring import Ring

MOST_AHEAD = 7
"""Most groups that are copied along with the faulting one; each makes the write wait for a tenth of a millisecond."""


class Guesses:
    """Groups noted before T will be written again; groups behind a faulting one will be written after it.

    Args:
        memory: what is protected.
        marks: of all groups.
        ring: where copies go.
        opened: 1 for every group that may be written without waiting; kept up to date by the caller.
        pieces: how much is done at a time.

    Attributes:
        most: groups that may be in the ring for a guess: guesses must not fill it.
    """

    def __init__(self, memory: Protection, marks: Marks, ring: Ring, opened: NDArray[np.uint8], pieces: Pieces) -> None:
        self._memory = memory
        self._marks = marks
        self._ring = ring
        self._open = opened
        self._pieces = pieces
        self._next: int | None = None
        self._more = 0
        self.most = ring.slots // 2

    @property
    def room(self) -> int:
        """How many groups may be copied for a guess now."""
        return max(self.most - len(self._ring), 0)

    def getting_ready(self) -> Iterator[bool]:
        """Before T: allocate memory in the ring for a copy of every noted group.

        Yields:
            True after every piece, False when there is enough for now.
        """
        ready = 0
        while True:
            more = min(int(np.count_nonzero(self._marks.noted)), self.most) > ready
            if more:
                self._ring.get_ready(ready, self._pieces.slots_ready)
                ready += self._pieces.slots_ready
            yield more

    def with_more(self, groups: range) -> range:
        """The groups that a write waits for, and those that are released with them."""
        phase = self._marks.phase[0]
        if phase < Phase.CAPTURING:
            return self._memory.around(groups, self._pieces.noted_bytes)
        return self.with_those_behind(groups) if phase == Phase.CAPTURING else groups

    def with_those_behind(self, groups: range) -> range:
        """The groups that a write waits for, and those behind them that will probably be written next."""
        in_turn = self._next is not None and groups.start - self._next >= 0 and self._is_open(self._next, groups.start)
        self._more = min(2 * self._more + 1, MOST_AHEAD, self.room) if in_turn else 0
        found = self._memory.longer(groups, self._more)
        self._next = found.stop
        return found

    def _is_open(self, start: int, stop: int) -> bool:
        """Whether all these groups may be written without waiting."""
        return stop - start <= MOST_AHEAD and bool(self._open[start:stop].all())
