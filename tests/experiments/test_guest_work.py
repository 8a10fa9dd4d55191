"""What a guest gets done while it is saved: judged from looks at its counter."""

from __future__ import annotations

import numpy as np
import pytest

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.experiments.guest_work import judge

STEADY = np.arange(0, 2.0005, 0.001)
"""Looked at once a millisecond."""


def counts(*paces: tuple[float, float], start: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """A counter that goes at each pace (a second) until then."""
    pace = np.zeros(len(STEADY) - 1)
    begin = 0.0
    for until, rate in paces:
        pace[(STEADY[1:] > begin + 1e-9) & (STEADY[1:] <= until + 1e-9)] = rate / 1000
        begin = until
    return (np.concatenate([[0], np.cumsum(pace)]).round().astype(np.int64) + start).astype(np.uint32)


def test_a_guest_that_nobody_disturbs_loses_nothing() -> None:
    work = judge(STEADY, counts((2.0, 100_000)), began=0.5, ended=1.5)
    assert (work.lost, work.gap) == pytest.approx((0, 0), abs=0.002)
    assert set(work.steps[1:-1]) == {1000}


def test_a_pause_is_lost_and_is_the_longest_gap() -> None:
    work = judge(STEADY, counts((0.8, 100_000), (1.05, 0), (2.0, 100_000)), began=0.5, ended=1.5)
    assert (work.lost, work.gap) == pytest.approx((0.25, 0.25), abs=0.003)
    assert work.steps[90] == 0


def test_gaps_are_told_by_how_many_are_shorter_in_the_run_and_outside() -> None:
    work = judge(STEADY, counts((0.8, 100_000), (1.05, 0), (2.0, 100_000)), began=0.5, ended=1.5)
    gaps, quiet = work.gaps, work.quiet
    assert (gaps.p50, gaps.p90, gaps.p99) == pytest.approx((0.001, 0.001, 0.001), abs=0.0002)
    assert gaps.longest == pytest.approx(0.25, abs=0.003)
    assert quiet.longest == pytest.approx(0.001, abs=0.0002)
    assert work.run == pytest.approx((0.5, 1.5))
    slow = judge(STEADY, counts((0.5, 100_000), (1.5, 100), (2.0, 100_000)), began=0.5, ended=1.5)
    assert slow.gaps.p50 == pytest.approx(0.01, abs=0.001)
    assert slow.quiet.p99 == pytest.approx(0.001, abs=0.0002)


def test_to_be_slower_is_lost_too_but_no_gap() -> None:
    work = judge(STEADY, counts((0.5, 100_000), (1.5, 50_000), (2.0, 100_000)), began=0.5, ended=1.5)
    assert (work.lost, work.gap) == pytest.approx((0.5, 0), abs=0.003)


def test_of_several_gaps_the_longest_counts() -> None:
    paces = ((0.7, 100_000), (0.71, 0), (0.9, 100_000), (0.94, 0), (2.0, 100_000))
    work = judge(STEADY, counts(*paces), began=0.5, ended=1.5)
    assert (work.lost, work.gap) == pytest.approx((0.05, 0.04), abs=0.003)


def test_a_counter_that_passes_its_end_goes_on() -> None:
    work = judge(STEADY, counts((2.0, 100_000), start=(1 << 32) - 70_000), began=0.5, ended=1.5)
    assert (work.lost, work.gap) == pytest.approx((0, 0), abs=0.002)


def test_a_guest_that_is_faster_meanwhile_has_lost_less_than_nothing() -> None:
    paces = ((0.5, 100_000), (1.5, 150_000), (2.0, 100_000))
    assert judge(STEADY, counts(*paces), began=0.5, ended=1.5).lost == pytest.approx(-0.5, abs=0.003)


@pytest.mark.parametrize("paces", [((0.5, 0), (2.0, 1000)), ((1.5, 1000), (2.0, 0))])
def test_a_guest_that_does_nothing_is_no_measure(paces: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(MachineError, match="does nothing"):
        judge(STEADY, counts(*paces), began=0.5, ended=1.5)
