import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cli import tmpfs
from support.pictures import PAGE, mark

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.engine.pages.reserve import (
    GIVE_BACK_PAGES,
    JOIN_GAP_PAGES,
    MIN_RESERVED_PAGES,
    Reservation,
    dense_runs,
)
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.publish import PendingFile


class NotingFile(PendingFile):
    """Notes what is reserved and what is punched, as pages of the only block; ``takes`` reservations it says yes to."""

    def __init__(self, path: str, first: int) -> None:
        super().__init__(path)
        self.first = first
        self.reserved: list[tuple[int, int]] = []
        self.punched: list[tuple[int, int]] = []
        self.takes = 1 << 30

    def reserve(self, offset: int, length: int) -> bool:
        if len(self.reserved) == self.takes:
            return False
        self.reserved.append(((offset - self.first) // PAGE, length // PAGE))
        return super().reserve(offset, length)

    def note_punches(self) -> None:
        punch = self.channel.punch

        def noting(offset: int, length: int) -> None:
            self.punched.append(((offset - self.first) // PAGE, length // PAGE))
            punch(offset, length)

        self.channel.punch = noting


def bitmap(picture: str) -> PageBitmap:
    found = PageBitmap(len(picture))
    mark(found, picture)
    return found


def written_along(picture: str, gap: int) -> list[tuple[int, int]]:
    """Page by page: maximal runs of drawn pages, gaps of up to so many pages among them."""
    found: list[tuple[int, int]] = []
    for index, letter in enumerate(picture):
        if letter == "-":
            continue
        if found and index - sum(found[-1]) <= gap:
            first, _ = found.pop()
            found.append((first, index + 1 - first))
        else:
            found.append((index, 1))
    return found


PICTURE = "x-x---x" + "-" * 20 + "x" * 70 + "-" * 64 + "x" + "-" * 100 + "xx-x"


@pytest.fixture
def noting(tmp_path: Path) -> Iterator[tuple[NotingFile, Reservation]]:
    layout = FileLayout.plan("m", [RAMBlock(idstr="ram", used_length=len(PICTURE) * PAGE)])
    with NotingFile(str(tmp_path / "FILE"), layout.blocks[0].header.pages_offset) as pending:
        pending.set_size(layout.ram_end)
        pending.note_punches()
        yield pending, Reservation(pending, layout.blocks)


@pytest.mark.parametrize("gap", [0, 1, 3, 20, 64, 99, 100, 255])
def test_every_range_that_direct_writes_will_fill_is_reserved_however_short(
    noting: tuple[NotingFile, Reservation], gap: int
) -> None:
    pending, space = noting
    space.take(0, bitmap(PICTURE), gap)
    assert pending.reserved == written_along(PICTURE, gap)


def test_through_the_page_cache_only_what_is_long_and_nearly_all_data_is_reserved(
    noting: tuple[NotingFile, Reservation],
) -> None:
    pending, space = noting
    space.take(0, bitmap(PICTURE))
    assert pending.reserved == [(27, 70)]
    assert MIN_RESERVED_PAGES <= 70
    assert JOIN_GAP_PAGES < 64


def test_on_tmpfs_it_is_asked_once_whether_all_of_it_fits_and_nothing_is_taken_or_given_back(tmp_path: Path) -> None:
    layout = FileLayout.plan("m", [RAMBlock(idstr="ram", used_length=len(PICTURE) * PAGE)])
    with (
        tmpfs(tmp_path / "small", "size=1m") as small,
        NotingFile(str(small / "FILE"), layout.blocks[0].header.pages_offset) as pending,
    ):
        pending.set_size(layout.ram_end)
        pending.note_punches()
        space = Reservation(pending, layout.blocks)
        space.take(0, bitmap(PICTURE), 0)
        assert pending.reserved == [(0, PICTURE.count("x"))]
        space.give_back([PageBitmap(len(PICTURE))], 0)
        assert pending.punched == []
        assert os.fstat(pending.fd).st_blocks == 0
        with pytest.raises(HostError, match="no space left"):
            space.take(0, bitmap("x-" * 300), 0)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 90)), max_size=40) | st.lists(st.just((1, 7)), max_size=60),
    st.sampled_from((0, 1, 16)),
)
def test_ranges_are_joined_as_the_naive_twin_joins_them_one_after_the_other(
    found: list[tuple[int, int]], gap: int
) -> None:
    """Each is joined to those before it, as long as it is near and gaps are at most an eighth of all."""
    runs, page = [], 0
    for hole, length in found:
        runs.append((page + hole, length))
        page += hole + length
    joined: list[list[int]] = []  # first page, page behind, pages that are data
    for first, length in runs:
        end = first + length
        if joined and first - joined[-1][1] <= gap and 8 * (joined[-1][2] + length) >= 7 * (end - joined[-1][0]):
            joined[-1][1:] = [end, joined[-1][2] + length]
        else:
            joined.append([first, end, length])
    expected = [[first, end - first] for first, end, _ in joined]
    assert dense_runs(np.array(runs, np.int64).reshape(-1, 2), gap).tolist() == expected


def test_a_file_system_that_cannot_reserve_is_asked_once(noting: tuple[NotingFile, Reservation]) -> None:
    pending, space = noting
    pending.takes = 0
    asked: list[int] = []
    real = pending.reserve
    pending.reserve = lambda offset, length: (asked.append(offset), real(offset, length))[1]
    space.take(0, bitmap(PICTURE), 0)
    assert len(asked) == 1
    space.give_back([PageBitmap(len(PICTURE))], 0)
    assert pending.punched == []


@pytest.mark.parametrize(
    ("gap", "zeros", "given_back"),
    [
        (0, GIVE_BACK_PAGES - 1, False),
        (0, GIVE_BACK_PAGES, True),
        (GIVE_BACK_PAGES - 1, GIVE_BACK_PAGES, True),
        (GIVE_BACK_PAGES, GIVE_BACK_PAGES, False),
        (50, 50, False),
        (50, 51, True),
        (255, 100, False),
    ],
)
def test_zero_pages_give_their_space_back_unless_they_are_few_or_were_written_along(
    noting: tuple[NotingFile, Reservation], gap: int, zeros: int, given_back: bool
) -> None:
    pending, space = noting
    ram = "x" * 27 + "0" * zeros + "x" * 10
    space.take(0, bitmap(ram.ljust(len(PICTURE), "-")), gap)
    file = bitmap(ram.replace("0", "-").ljust(len(PICTURE), "-"))
    before = file.to_bytes()
    space.give_back([file], gap)
    assert pending.punched == ([(27, zeros)] if given_back else [])
    assert file.to_bytes() == before


@given(
    st.lists(st.tuples(st.sampled_from("x0-"), st.sampled_from((1, 2, 15, 16, 17, 63, 64, 65, 80))), max_size=10),
    st.sampled_from((None, 0, 3, 16, 64, 255)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_given_back_is_neither_in_the_file_nor_written_along(
    noting: tuple[NotingFile, Reservation], stretches: list[tuple[str, int]], gap: int | None
) -> None:
    """``0`` is a page that was expected to hold something and is zero."""
    pending, space = noting
    ram = "".join(letter * count for letter, count in stretches)[: len(PICTURE)].ljust(len(PICTURE), "-")
    pending.reserved, pending.punched = [], []
    space.take(0, bitmap(ram), gap)
    space.give_back([bitmap(ram.replace("0", "-"))], gap or 0)
    space._reserved[0].words[:] = 0
    reserved = {page for first, count in pending.reserved for page in range(first, first + count)}
    given_back = {page for first, count in pending.punched for page in range(first, first + count)}
    written = {page for first, count in written_along(ram.replace("0", "-"), gap or 0)
               for page in range(first, first + count)}  # fmt: skip
    assert given_back <= reserved - written
    left_over = sorted(reserved - written - given_back)
    stretches_left = written_along("".join("x" if page in left_over else "-" for page in range(len(ram))), 0)
    assert all(count < max(GIVE_BACK_PAGES, (gap or 0) + 1) for _, count in stretches_left)
    assert {page for page, letter in enumerate(ram) if letter != "-"} <= reserved or gap is None


def test_what_is_reserved_takes_space_and_what_is_given_back_takes_none(
    noting: tuple[NotingFile, Reservation],
) -> None:
    pending, space = noting
    space.take(0, bitmap(PICTURE), 64)
    status = pending.channel.stat()
    assert status.st_blocks * 512 // PAGE >= sum(count for _, count in pending.reserved)
    space.give_back([PageBitmap(len(PICTURE))], 64)
    long = [each for each in pending.reserved if each[1] > 64]
    assert pending.punched == long
    freed = status.st_blocks - pending.channel.stat().st_blocks
    assert freed * 512 // PAGE == sum(count for _, count in long)
