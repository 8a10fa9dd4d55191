"""Which pages lie in runs, and in which windows, checked against loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.bitmap import runs_of_ones
from parallel_fixedram.engine.pages.window import covered, pieces


@given(st.lists(st.booleans(), max_size=600))
def test_runs_cover_the_pages_they_were_made_of(pages: list[bool]) -> None:
    bits = np.array(pages, np.uint8)
    assert covered(runs_of_ones(bits), len(bits)).tolist() == bits.tolist()


def test_runs_that_touch_cover_both() -> None:
    assert covered(np.array([(0, 2), (2, 1), (5, 1)]), 6).tolist() == [1, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("wanted", "each", "joined"),
    [
        ("xxxx xxxx xxxx", ["xxxx", "xxxx", "xxxx"], ["xxxx", "xxxx", "xxxx"]),
        ("---- x--- ---- --xx x---", ["x---", "--xx", "x---"], ["x---------xxx---"]),
        ("xxx- -x-- --x- x", ["xxx-", "-x--", "--x-", "x"], ["xxx--x--", "--x-x"]),
        ("---- --", [], []),
    ],
)
def test_windows_with_few_pages_are_joined_where_they_may_be(wanted: str, each: list[str], joined: list[str]) -> None:
    picture = wanted.replace(" ", "")
    bits = np.array([letter == "x" for letter in picture], np.uint8)
    assert [picture[part] for part in pieces(bits, 4, joined=False)] == each
    assert [picture[part] for part in pieces(bits, 4, joined=True)] == joined


@given(st.lists(st.booleans(), min_size=1, max_size=600), st.integers(1, 70), st.booleans())
def test_every_wanted_page_is_in_one_window_and_no_window_has_too_many(
    pages: list[bool], length: int, joined: bool
) -> None:
    bits, seen = np.array(pages, np.uint8), np.zeros(len(pages), np.int64)
    for part in pieces(bits, length, joined=joined):
        seen[part] += 1
        assert 0 < np.count_nonzero(bits[part]) <= length
        assert part.start % length == 0
        assert joined or part.stop - part.start == length
    assert (seen[bits == 1] == 1).all()
    assert seen.max(initial=0) <= 1
