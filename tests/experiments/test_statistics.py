"""Intervals hold what they promise, and too few samples promise nothing."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.experiments.statistics import RatioVerdict, median, paired_ratio, ratio_of_medians, summary

times = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)
RATIOS = [ratio_of_medians, paired_ratio]


def log_normal(random, count, middle=1.0, spread=0.2):
    return (middle * np.exp(random.normal(0, spread, count))).tolist()


def test_the_median_is_the_middle_or_the_mean_of_the_two_middle_ones():
    assert median([3]) == 3
    assert median([9, 1, 5]) == 5
    assert median([1, 2, 4, 100]) == 3


def test_a_summary_has_range_and_quartiles():
    found = summary([5, 1, 2, 3, 4])
    assert (found.count, found.median, found.least, found.most) == (5, 3, 1, 5)
    assert (found.lower_quartile, found.upper_quartile) == (2, 4)


@pytest.mark.parametrize("function", [median, summary])
def test_no_samples_have_no_median(function):
    with pytest.raises(ValueError, match="no samples"):
        function([])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("wrong", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_what_is_not_a_time_has_no_ratio(ratio, wrong):
    with pytest.raises(ValueError, match="sample"):
        ratio([1.0], wrong)
    with pytest.raises(ValueError, match="sample"):
        ratio(wrong, [1.0])


def test_lists_of_different_lengths_are_no_pairs():
    with pytest.raises(ValueError, match="3 and 2 samples are no pairs"):
        paired_ratio([1, 2, 3], [1, 2])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("samples", [[1.0] * 7, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
def test_identical_samples_cannot_be_told_apart(ratio, samples):
    found = ratio(samples, samples)
    assert found.value == 1
    assert found.low <= 1 <= found.high
    assert found.verdict is RatioVerdict.CANNOT_TELL
    assert found.why == "the interval holds 1"


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_samples_give_a_ratio_and_no_verdict_however_large_it_is(ratio, count):
    found = ratio([1.0] * count, [50.0] * count)
    assert found.value == 50
    assert (found.low, found.high) == (None, None)
    assert found.verdict is RatioVerdict.CANNOT_TELL
    assert found.why.startswith(f"{count} of at least ")


def test_one_short_list_is_enough_to_be_unsure():
    assert ratio_of_medians([1.0] * 20, [5.0] * 3).low is None


@pytest.mark.parametrize("ratio", RATIOS)
def test_lists_far_apart_are_told_apart_in_both_directions(ratio):
    random = np.random.default_rng(1)
    short, long = log_normal(random, 7), log_normal(random, 7, 3.0)
    assert ratio(short, long).verdict is RatioVerdict.SLOWER
    assert ratio(long, short).verdict is RatioVerdict.FASTER
    assert ratio(short, long).why == ""


def test_what_drifts_in_both_is_seen_by_pairs_alone():
    drift = np.linspace(1, 4, 7)
    first, second = drift.tolist(), (1.1 * drift).tolist()
    assert ratio_of_medians(first, second).verdict is RatioVerdict.CANNOT_TELL
    found = paired_ratio(first, second)
    assert found.verdict is RatioVerdict.SLOWER
    assert found.value == pytest.approx(1.1)


@pytest.mark.parametrize("ratio", [partial(ratio_of_medians, resamples=400), paired_ratio], ids=["medians", "pairs"])
@pytest.mark.parametrize("count", [7, 12])
def test_an_interval_of_95_percent_holds_the_true_ratio_about_as_often(ratio, count):
    random = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        found = ratio(log_normal(random, count), log_normal(random, count, 1.3))
        held += found.low <= 1.3 <= found.high
    assert 0.91 <= held / 400 <= 1


def test_a_smaller_confidence_gives_a_narrower_interval():
    random = np.random.default_rng(3)
    a, b = log_normal(random, 11), log_normal(random, 11)
    wide, narrow = ratio_of_medians(a, b), ratio_of_medians(a, b, confidence=0.5)
    assert wide.low < narrow.low <= narrow.high < wide.high
    wide, narrow = paired_ratio(a, b), paired_ratio(a, b, confidence=0.5)
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_seven_pairs_have_an_interval_over_all_of_their_ratios_and_nine_leave_out_the_outermost():
    ratios = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    found = paired_ratio([1.0] * 7, ratios)
    assert (found.low, found.high) == (1, 7)
    found = paired_ratio([1.0] * 9, [*ratios, 8.0, 9.0])
    assert (found.low, found.high) == (2, 8)


@given(times, times)
def test_the_same_samples_give_the_same_ratio_inside_its_interval(first, second):
    found = ratio_of_medians(first, second)
    assert found == ratio_of_medians(first, second)
    assert found.value == pytest.approx(median(second) / median(first))
    if found.low is not None:
        assert min(second) / max(first) * 0.999 <= found.low <= found.high <= max(second) / min(first) * 1.001
