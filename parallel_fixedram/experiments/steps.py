"""Steps in a series: where its level changed, by Pettitt's test (Applied Statistics 28, 1979), again on both sides.

The test asks whether the values before a place tend to be smaller or larger than those behind it. It looks only at
ranks, so a single outlier is not a step. How likely so clear a place is without a step is found by shuffling the
values. Fewer than ten values cannot show a step with that certainty, nor can the last few: use ``compare`` for two
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.experiments.statistics import median

LEVEL = 0.01
"""A step is one that shuffled values show less often than this."""
SHUFFLES = 4000
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelChange:
    """A place where the level changed."""

    place: int
    """Index of the first value behind it."""
    before: float
    """Median from the step before it on."""
    after: float
    """Median up to the next step."""
    probability: float
    """How often shuffled values show as clear a step."""


def find_steps(values: Sequence[float]) -> list[LevelChange]:
    """Steps of a series, ascending by place."""
    numbers = np.asarray(values, np.float64)
    places = dict(sorted(_places(numbers, 0)))
    edges = [0, *places, len(numbers)]
    return [
        LevelChange(
            place=place,
            before=median(values[edges[number] : place]),
            after=median(values[place : edges[number + 2]]),
            probability=probability,
        )
        for number, (place, probability) in enumerate(places.items())
    ]


def _places(values: NDArray[np.float64], offset: int) -> list[tuple[int, float]]:
    if len(values) < 2:
        return []
    ranks = _ranks(values)
    clear = _statistics(ranks[None, :])[0]
    place = int(np.argmax(clear)) + 1
    shuffled = np.random.default_rng(SEED).permuted(np.tile(ranks, (SHUFFLES, 1)), axis=1)
    as_clear = int(np.count_nonzero(_statistics(shuffled).max(axis=1) >= clear.max() - 1e-9))
    probability = (as_clear + 1) / (SHUFFLES + 1)
    if probability >= LEVEL:
        return []
    before, after = _places(values[:place], offset), _places(values[place:], offset + place)
    return [*before, (offset + place, probability), *after]


def _statistics(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row and each place between two values how far the ranks before it are from even, shape (rows, n - 1)."""
    count = ranks.shape[1]
    places = np.arange(1, count)
    found: NDArray[np.float64] = np.abs(2 * np.cumsum(ranks, axis=1)[:, :-1] - places * (count + 1))
    return found


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1 on; equal values share the mean of theirs."""
    ordered = np.sort(values)
    first, last = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    found: NDArray[np.float64] = (first + last + 1) / 2
    return found
