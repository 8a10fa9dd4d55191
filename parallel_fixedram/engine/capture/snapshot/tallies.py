"""Tallies: what a handler counts."""

from __future__ import annotations

from array import array

import numpy as np

from parallel_fixedram.core.latency import bins_of
from parallel_fixedram.core.reports.save import FaultSeconds
from parallel_fixedram.engine.capture.snapshot.messages import Figures


class Tallies:
    """Counts for Figures.

    Attributes:
        ahead: groups copied before a write waited for them.
        copied: groups copied for writes that waited.
        let_through: groups released without a copy.
        ring_waits: faults that found the ring full.
        noted: groups noted before T.
    """

    def __init__(self) -> None:
        self.ahead = self.copied = self.let_through = self.ring_waits = self.noted = 0
        self._seconds = array("d")

    def served(self, seconds: float, *, copied: int, uncopied: int) -> None:
        """Count a fault after T that was served.

        Args:
            seconds: since it was read.
            copied: groups copied for it.
            uncopied: groups released for it without a copy.
        """
        self.copied += copied
        self.let_through += uncopied
        self._seconds.append(seconds)

    def figures(self, void: str | None) -> Figures:
        """All counts."""
        seconds = FaultSeconds(median=0.0, p99=0.0, max=0.0)
        if self._seconds:
            waited = np.frombuffer(self._seconds)
            median, p99, longest = np.percentile(waited, (50, 99, 100)).tolist()
            seconds = FaultSeconds(median=median, p99=p99, max=longest, bins=bins_of(waited))
        return Figures(
            faults=len(self._seconds),
            ahead_groups=self.ahead,
            copied_groups=self.copied,
            let_through=self.let_through,
            noted_groups=self.noted,
            ring_waits=self.ring_waits,
            fault_seconds=seconds,
            void=void,
        )
