"""Medians of few samples, and how sure one can be of the ratio of two.

Samples taken independently: percentile bootstrap of the ratio of medians (no bias correction: medians of seven samples
take few values). Both lists are drawn again with replacement, many times, and the middle 95 % of the ratios are kept;
the generator has a fixed seed, so the same samples give the same interval. Samples taken in turn: the median of the
ratios within a round, and the interval between two of these ratios that holds their true median in at least 95 % of all
cases whatever their distribution (sign test), because the bootstrap of seven pairs held it in 87 % only.

Too few samples give no interval, instead of one that means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

MIN_SAMPLES = 5
"""Fewer in either list give a ratio without an interval: for three the bootstrap's would hold the truth in 89 %."""
MIN_PAIRS = 6
"""All of fewer pairs lie on one side of the true median in more than 5 % of all cases."""
CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 1

Numbers = NDArray[np.float64]


class RatioVerdict(StrEnum):
    """What a ratio of times says."""

    FASTER = "faster"
    SLOWER = "slower"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A list of samples in a few numbers, in the samples' unit."""

    count: int
    median: float
    least: float
    most: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """By what factor the medians of two lists of times differ."""

    value: float
    """Above 1: the second list's times are longer."""
    low: float | None
    """Lower bound of the interval, inclusive; None where there are too few samples for one."""
    high: float | None
    samples: tuple[int, int]
    """How many of each list; equal for pairs."""
    paired: bool

    @property
    def verdict(self) -> RatioVerdict:
        """Whether the second list is slower or faster than the first, as far as the interval tells."""
        if self.low is not None and self.low > 1:
            return RatioVerdict.SLOWER
        if self.high is not None and self.high < 1:
            return RatioVerdict.FASTER
        return RatioVerdict.CANNOT_TELL

    @property
    def why(self) -> str:
        """Why it cannot be told, a few words; empty where it can."""
        if self.verdict is not RatioVerdict.CANNOT_TELL:
            return ""
        if self.low is None:
            return f"{min(self.samples)} of at least {MIN_PAIRS if self.paired else MIN_SAMPLES} samples"
        return "the interval holds 1"


def median(samples: Sequence[float]) -> float:
    """The middle of the samples, the mean of the two middle ones where their number is even.

    Raises:
        ValueError: there are none.
    """
    return float(np.median(_numbers(samples)))


def summary(samples: Sequence[float]) -> Summary:
    """Median, quartiles and range of the samples.

    Raises:
        ValueError: there are none.
    """
    numbers = _numbers(samples)
    lower, middle, upper = np.quantile(numbers, [0.25, 0.5, 0.75]).tolist()
    return Summary(
        count=len(numbers),
        median=middle,
        least=float(numbers.min()),
        most=float(numbers.max()),
        lower_quartile=lower,
        upper_quartile=upper,
    )


def median_interval(samples: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Two samples between which the true median lies in at least that many of all cases (sign test).

    Returns:
        Both, or None where there are too few samples.

    Raises:
        ValueError: there are none.
    """
    numbers = np.sort(_numbers(samples))
    outside = _outside(len(numbers), confidence)
    return None if outside is None else (float(numbers[outside]), float(numbers[-1 - outside]))


def ratio_of_medians(
    first: Sequence[float], second: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> Ratio:
    """Median of ``second`` by median of ``first``, for samples taken independently of each other.

    Args:
        first: positive numbers.
        second: positive numbers, not necessarily as many.
        confidence: how much of the bootstrap distribution the interval holds, between 0 and 1.
        resamples: how many medians of samples drawn again that is.

    Raises:
        ValueError: a list is empty, or a number is not positive.
    """
    a, b = _positive(first), _positive(second)
    value = float(np.median(b) / np.median(a))
    low = high = None
    if min(len(a), len(b)) >= MIN_SAMPLES:
        random = np.random.default_rng(SEED)
        low, high = _middle(_medians(b, resamples, random) / _medians(a, resamples, random), confidence)
    return Ratio(value=value, low=low, high=high, samples=(len(a), len(b)), paired=False)


def paired_ratio(first: Sequence[float], second: Sequence[float], *, confidence: float = CONFIDENCE) -> Ratio:
    """Median of the ratios ``second[i] / first[i]``, for samples taken in turn: a drift affects both of a pair.

    Args:
        first: positive numbers.
        second: positive numbers; ``second[i]`` was taken in the same round as ``first[i]``.
        confidence: least probability, over all possible samples, that the interval holds the true median.

    Raises:
        ValueError: the lists are empty or of different lengths, or a number is not positive.
    """
    a, b = _positive(first), _positive(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} samples are no pairs")
    ratios = np.sort(b / a)
    low = high = None
    outside = _outside(len(ratios), confidence)
    if outside is not None:
        low, high = float(ratios[outside]), float(ratios[-1 - outside])
    return Ratio(value=float(np.median(ratios)), low=low, high=high, samples=(len(a), len(b)), paired=True)


def _outside(count: int, confidence: float) -> int | None:
    """How many of ``count`` sorted values may be left out at each end; None where even all of them are not enough."""
    found, below = None, 0
    for left_out in range(count // 2 + 1):
        below += math.comb(count, left_out)  # ways in which at most so many values lie below the true median
        if 2 * below / 2**count > 1 - confidence:
            break
        found = left_out
    return found


def _medians(samples: Numbers, resamples: int, random: np.random.Generator) -> Numbers:
    """Medians of samples drawn again with replacement, shape (resamples,)."""
    drawn = samples[random.integers(0, len(samples), (resamples, len(samples)))]
    found: Numbers = np.median(drawn, axis=1)
    return found


def _middle(values: Numbers, confidence: float) -> tuple[float, float]:
    outside = (1 - confidence) / 2
    low, high = np.quantile(values, [outside, 1 - outside]).tolist()
    return low, high


def _numbers(samples: Sequence[float]) -> Numbers:
    numbers = np.asarray(samples, np.float64)
    if not len(numbers):
        raise ValueError("no samples")
    return numbers


def _positive(samples: Sequence[float]) -> Numbers:
    numbers = _numbers(samples)
    if not all(math.isfinite(number) and number > 0 for number in numbers.tolist()):
        raise ValueError("a sample is not a positive number")
    return numbers
