"""Latencies in bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.latency import BINS, LatencyCounter, added, bins_of, quantile, upper_end

SECONDS = st.lists(st.floats(0, 1e5), max_size=50)


def naive(seconds: list[float]) -> tuple[int, ...]:
    """One after the other, bin after bin."""
    counts = [0] * BINS
    for each in seconds:
        number = 0
        while number < BINS - 1 and each * 1e6 >= 1 << number:
            number += 1
        counts[number] += 1
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)


@given(SECONDS)
def test_a_latency_is_in_the_bin_whose_end_it_is_below(seconds: list[float]) -> None:
    assert bins_of(seconds) == naive(seconds)


@given(SECONDS, SECONDS)
def test_to_count_one_by_one_or_together_or_in_two_halves_is_the_same(first: list[float], second: list[float]) -> None:
    counter = LatencyCounter()
    for each in first:
        counter.note(each)
    counter.note_all(np.array(second))
    assert counter.taken() == bins_of(first + second) == added((bins_of(first), bins_of(second)))
    assert counter.taken() == ()


@pytest.mark.parametrize(
    ("seconds", "bins"), [([], ()), ([0.0], (1,)), ([1e-6], (0, 1)), ([1.9e-6, 0.9e-6], (1, 1)), ([3e-6], (0, 0, 1))]
)
def test_bins_end_with_the_last_that_holds_something(seconds: list[float], bins: tuple[int, ...]) -> None:
    assert bins_of(seconds) == bins


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_at_most_twice_too_much(seconds: list[float], share: float) -> None:
    ordered = sorted(seconds)
    true = ordered[max(int(np.ceil(share * len(ordered))), 1) - 1]
    assert true < quantile(bins_of(seconds), share) <= 2 * true * (1 + 1e-9)


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        quantile((), 0.5)
    assert upper_end(10) == 1024e-6
