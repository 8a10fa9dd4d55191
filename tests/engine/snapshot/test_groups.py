"""Groups: addresses, blocks and units of several groups, against a walk over every page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import at_most

from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.engine.capture.snapshot.groups import Groups

PAGE, GROUP, HUGE = 4096, 64 * 4096, 1 << 21
A, B = 1 << 32, 1 << 31
"""Where the first block of these tests lies, and the second one: below it."""


def two_blocks(first: int, second: int, huge: bool = False) -> Groups:
    size = HUGE if huge else PAGE
    return Groups(
        [
            RAMBlock(idstr="a", used_length=first * PAGE),
            RAMBlock(idstr="b", used_length=second * size, host_page_size=size),
        ],
        [A, B],
    )


@pytest.mark.parametrize("pages", [1, 15, 16, 17, 63, 64, 65])
def test_a_group_is_64_pages_and_the_last_one_of_a_block_what_is_left(pages: int) -> None:
    groups = two_blocks(pages, 65)
    assert groups.count == (pages + 63) // 64 + 2
    last = groups.firsts[1] - 1
    assert groups.place(last) == (0, (pages - 1) // 64)
    assert groups.pages(last) == (pages - 1) % 64 + 1
    assert groups.span(range(groups.firsts[1])) == (A, pages * PAGE)
    assert [groups.pages(each) for each in range(groups.firsts[1], groups.count)] == [64, 1]


def test_an_address_names_its_group_and_an_address_of_no_block_none() -> None:
    groups = two_blocks(65, 64)
    assert groups.unit(A) == range(1)
    assert groups.unit(A + GROUP - 1) == range(1)
    assert groups.unit(A + GROUP) == range(1, 2)
    assert groups.unit(B + 5) == range(2, 3)
    assert not groups.unit(A + 65 * PAGE)
    assert not groups.unit(A - 1)


def test_on_huge_pages_all_groups_of_a_page_go_together() -> None:
    groups = two_blocks(1, 3, huge=True)
    assert groups.unit(B + HUGE + 5) == range(9, 17)
    assert groups.within(B + HUGE - 1, B + HUGE + 1) == [range(1, 17)]
    assert list(groups.pieces(GROUP)) == [range(1, 9), range(9, 17), range(17, 25), range(1)]


def test_groups_are_made_longer_by_whole_units_up_to_the_end_of_their_block() -> None:
    small, huge = two_blocks(65 * 8, 64), two_blocks(1, 512 * 3, huge=True)
    assert small.longer(range(2, 3), 3) == range(2, 6)
    assert small.longer(range(7, 8), 7) == range(7, 9)
    assert huge.longer(range(1, 9), 7) == range(1, 9)
    assert huge.longer(range(1, 9), 9) == range(1, 17)


def test_what_lies_in_the_same_bytes_is_around_a_group_as_far_as_its_block_goes() -> None:
    small, huge = two_blocks(64 * 20, 64 * 3), two_blocks(1, 512 * 3, huge=True)
    assert small.around(range(9, 10), 8 * GROUP) == range(8, 16)
    assert small.around(range(17, 18), 8 * GROUP) == range(16, 20)
    assert small.around(range(21, 22), 8 * GROUP) == range(20, 23)
    assert huge.around(range(9, 17), 8 * GROUP) == range(9, 17)


def test_the_length_of_pieces_may_be_asked_for_anew_each_time() -> None:
    lengths = iter([GROUP, 4 * GROUP, 2 * GROUP])
    groups = Groups([RAMBlock(idstr="a", used_length=7 * GROUP)], [A])
    assert list(groups.pieces(lambda: next(lengths))) == [range(1), range(1, 5), range(5, 7)]


def test_what_is_not_protected_is_left_out() -> None:
    blocks = [RAMBlock(idstr="a", used_length=GROUP), RAMBlock(idstr="b", used_length=GROUP)]
    groups = Groups(blocks, [None, B])
    assert list(groups.pieces(HUGE)) == [range(1, 2)]
    assert not groups.unit(A)


@given(
    st.integers(1, 400),
    st.integers(1, 6),
    st.booleans(),
    st.integers(1, 20),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
@at_most(20)
def test_pieces_hold_every_marked_unit_once_and_none_in_part(
    first: int, second: int, huge: bool, most: int, marked: list[bool]
) -> None:
    groups = two_blocks(first, second, huge)
    marks = np.resize(np.array(marked, np.uint8), groups.count)
    unit = 8 if huge else 1
    pieces = list(groups.pieces(most * GROUP, lambda part: marks[part]))
    found = [group for piece in pieces for group in piece]
    edge = groups.firsts[1]
    whole = [
        group
        for group in range(groups.count)
        if (marks[group] if group < edge else marks[(start := group - (group - edge) % unit) : start + unit].all())
    ]
    assert sorted(found) == whole
    for piece in pieces:
        assert groups.place(piece.start)[0] == groups.place(piece.stop - 1)[0]
        assert len(piece) <= max(most, unit)


@given(st.integers(-3, 9), st.integers(0, 9))
def test_within_names_every_group_that_has_a_byte_there(start: int, length: int) -> None:
    groups = two_blocks(65, 130)
    begin = B + start * GROUP // 2
    end = begin + length * GROUP // 2
    expected = [g for g in range(2, 5) if max(begin, (s := groups.span(range(g, g + 1)))[0]) < min(end, sum(s))]
    assert [group for part in groups.within(begin, end) for group in part] == expected


def test_marks_are_asked_for_a_part_at_a_time() -> None:
    asked: list[slice] = []

    def marked(part: slice) -> np.ndarray:
        asked.append(part)
        return np.ones(part.stop - part.start, np.uint8)

    groups = Groups([RAMBlock(idstr="a", used_length=100_000 * GROUP)], [A])
    pieces = groups.pieces(HUGE, marked)
    assert next(pieces) == range(8)
    assert asked == [slice(0, part := asked[0].stop)]
    assert part < 50_000
    *_, last = pieces
    assert last == range(99_992, 100_000)
    assert asked == [slice(start, min(start + part, 100_000)) for start in range(0, 100_000, part)]
