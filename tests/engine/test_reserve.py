import contextlib
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
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.space import Space


class NotingSpace(Space):
    """Notes what is reserved and given back, as pages of the only block; ``takes`` reservations it says yes to."""

    def __init__(self, channel: FileChannel, first: int) -> None:
        super().__init__(channel)
        self.channel, self.first = channel, first
        self.reserved: list[tuple[int, int]] = []
        self.given_back: list[tuple[int, int]] = []
        self.asked = 0
        self.takes = 1 << 30

    def reserve(self, offset: int, length: int) -> bool:
        self.asked += 1
        if len(self.reserved) == self.takes:
            return False
        self.reserved.append(((offset - self.first) // PAGE, length // PAGE))
        return super().reserve(offset, length)

    def give_back(self, offset: int, length: int) -> None:
        self.given_back.append(((offset - self.first) // PAGE, length // PAGE))
        super().give_back(offset, length)


@contextlib.contextmanager
def noting_space(path: Path) -> Iterator[tuple[NotingSpace, Reservation]]:
    layout = FileLayout.plan("m", [RAMBlock(idstr="ram", used_length=len(PICTURE) * PAGE)])
    with path.open("w+b") as file:
        file.truncate(layout.ram_end)
        space = NotingSpace(FileChannel(file.fileno(), str(path)), layout.blocks[0].header.pages_offset)
        yield space, Reservation(space, layout.blocks)


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
def noting(tmp_path: Path) -> Iterator[tuple[NotingSpace, Reservation]]:
    with noting_space(tmp_path / "FILE") as both:
        yield both


@pytest.mark.parametrize("gap", [0, 1, 3, 20, 64, 99, 100, 255])
def test_every_range_that_direct_writes_will_fill_is_reserved_however_short(
    noting: tuple[NotingSpace, Reservation], gap: int
) -> None:
    space, reservation = noting
    reservation.take(0, bitmap(PICTURE), gap)
    assert space.reserved == written_along(PICTURE, gap)


def test_through_the_page_cache_only_what_is_long_and_nearly_all_data_is_reserved(
    noting: tuple[NotingSpace, Reservation],
) -> None:
    space, reservation = noting
    reservation.take(0, bitmap(PICTURE))
    assert space.reserved == [(27, 70)]
    assert MIN_RESERVED_PAGES <= 70
    assert JOIN_GAP_PAGES < 64


def test_on_tmpfs_it_is_asked_once_whether_all_of_it_fits_and_nothing_is_taken_or_given_back(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as small, noting_space(small / "FILE") as (space, reservation):
        reservation.take(0, bitmap(PICTURE), 0)
        assert space.reserved == [(0, PICTURE.count("x"))]
        reservation.give_back([PageBitmap(len(PICTURE))], 0)
        assert space.given_back == []
        assert os.fstat(space.channel.fd).st_blocks == 0
        with pytest.raises(HostError, match="no space left"):
            reservation.take(0, bitmap("x-" * 300), 0)


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


def test_a_file_system_that_cannot_reserve_is_asked_once(noting: tuple[NotingSpace, Reservation]) -> None:
    space, reservation = noting
    space.takes = 0
    reservation.take(0, bitmap(PICTURE), 0)
    assert space.asked == 1
    reservation.give_back([PageBitmap(len(PICTURE))], 0)
    assert space.given_back == []


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
    noting: tuple[NotingSpace, Reservation], gap: int, zeros: int, given_back: bool
) -> None:
    space, reservation = noting
    ram = "x" * 27 + "0" * zeros + "x" * 10
    reservation.take(0, bitmap(ram.ljust(len(PICTURE), "-")), gap)
    file = bitmap(ram.replace("0", "-").ljust(len(PICTURE), "-"))
    before = file.to_bytes()
    reservation.give_back([file], gap)
    assert space.given_back == ([(27, zeros)] if given_back else [])
    assert file.to_bytes() == before


@given(
    st.lists(st.tuples(st.sampled_from("x0-"), st.sampled_from((1, 2, 15, 16, 17, 63, 64, 65, 80))), max_size=10),
    st.sampled_from((None, 0, 3, 16, 64, 255)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_given_back_is_neither_in_the_file_nor_written_along(
    noting: tuple[NotingSpace, Reservation], stretches: list[tuple[str, int]], gap: int | None
) -> None:
    """``0`` is a page that was expected to hold something and is zero."""
    space, reservation = noting
    ram = "".join(letter * count for letter, count in stretches)[: len(PICTURE)].ljust(len(PICTURE), "-")
    space.reserved, space.given_back = [], []
    reservation.take(0, bitmap(ram), gap)
    reservation.give_back([bitmap(ram.replace("0", "-"))], gap or 0)
    reservation._reserved[0].words[:] = 0
    reserved = {page for first, count in space.reserved for page in range(first, first + count)}
    given_back = {page for first, count in space.given_back for page in range(first, first + count)}
    written = {page for first, count in written_along(ram.replace("0", "-"), gap or 0)
               for page in range(first, first + count)}  # fmt: skip
    assert given_back <= reserved - written
    left_over = sorted(reserved - written - given_back)
    stretches_left = written_along("".join("x" if page in left_over else "-" for page in range(len(ram))), 0)
    assert all(count < max(GIVE_BACK_PAGES, (gap or 0) + 1) for _, count in stretches_left)
    assert {page for page, letter in enumerate(ram) if letter != "-"} <= reserved or gap is None


def test_what_is_reserved_takes_space_and_what_is_given_back_takes_none(
    noting: tuple[NotingSpace, Reservation],
) -> None:
    space, reservation = noting
    reservation.take(0, bitmap(PICTURE), 64)
    status = space.channel.stat()
    assert status.st_blocks * 512 // PAGE >= sum(count for _, count in space.reserved)
    reservation.give_back([PageBitmap(len(PICTURE))], 64)
    long = [each for each in space.reserved if each[1] > 64]
    assert space.given_back == long
    freed = status.st_blocks - space.channel.stat().st_blocks
    assert freed * 512 // PAGE == sum(count for _, count in long)
