"""Latencies in bins: how many of many things took how long, few numbers for any number of things.

Bin ``n`` counts those that took less than ``2**n`` microseconds, and no less than half of that; the first one all below
one, the last one all from there on. Bins of which nothing is left are not there: what was never counted has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

BINS = 32
"""At most; the last one begins at 18 minutes."""

Bins = tuple[int, ...]


def bins_of(seconds: NDArray[np.float64] | Sequence[float]) -> Bins:
    """How many of these latencies are in each bin."""
    # frexp says x = m * 2**n with m from 0.5 to below 1, so n is the bin
    numbers = np.frexp(np.asarray(seconds, np.float64) * 1e6)[1]
    return _trimmed(np.bincount(np.clip(numbers, 0, BINS - 1), minlength=1).tolist())


def added(several: Iterable[Sequence[int]]) -> Bins:
    """The sums, bin by bin."""
    return tuple(map(sum, zip_longest(*several, fillvalue=0)))


def upper_end(number: int) -> float:
    """Seconds that what is in this bin took less than."""
    return float(1 << number) / 1e6


def quantile(bins: Sequence[int], share: float) -> float:
    """Seconds that this share of all took less than, 0 to 1: the upper end of a bin, so at most twice too much.

    Raises:
        ValueError: nothing was counted.
    """
    reached = np.cumsum(bins)
    if not len(reached) or not reached[-1]:
        raise ValueError("nothing was counted")
    return upper_end(int(np.searchsorted(reached, max(math.ceil(share * reached[-1]), 1))))


class LatencyCounter:
    """Counts latencies until somebody takes what was counted."""

    def __init__(self) -> None:
        self._counts = [0] * BINS

    def note(self, seconds: float) -> None:
        """Count one."""
        self._counts[min(max(math.frexp(seconds * 1e6)[1], 0), BINS - 1)] += 1

    def note_all(self, seconds: NDArray[np.float64]) -> None:
        """Count several."""
        for number, count in enumerate(bins_of(seconds)):
            self._counts[number] += count

    def taken(self) -> Bins:
        """What was counted since this was asked last."""
        counts, self._counts = self._counts, [0] * BINS
        return _trimmed(counts)


def _trimmed(counts: Sequence[int]) -> Bins:
    last = max((number for number, count in enumerate(counts) if count), default=-1)
    return tuple(counts[: last + 1])
