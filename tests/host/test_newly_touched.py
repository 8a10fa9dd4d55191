"""MappedSource.newly_touched by way of the page cache against the same by way of lseek, its naive twin."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.conformance import covered
from support.disks import on_disk
from support.pictures import PAGE, allocated_pages
from support.somebody_else import as_nobody

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import mapped_source
from parallel_fixedram.host.memory.copied_source import CopiedSource, newly_touched_by_asking
from parallel_fixedram.host.memory.mapped_source import MappedSource

CHUNK = 4096
"""Pages that are asked for at once."""


def mapped(fd: int, pages: int, *, offset: int = 0) -> MappedSource:
    os.ftruncate(fd, offset + pages * PAGE)
    return MappedSource(fd, offset=offset, length=pages * PAGE)


def data_of(source: MappedSource, pages: int) -> PageBitmap:
    data = PageBitmap(pages)
    for each in source.data_ranges(PageRange(0, pages)):
        data.set_range(each)
    return data


def touch(fd: int, pages: Iterable[int]) -> None:
    for index in pages:
        os.pwrite(fd, b"x", index * PAGE)


@pytest.fixture
def scattered() -> Iterator[tuple[int, MappedSource, PageBitmap]]:
    """Two chunks and a page: in the first every second page is data, in the others none."""
    fd = os.memfd_create("ram")
    pages = 2 * CHUNK + 1
    source = mapped(fd, pages)
    touch(fd, range(0, CHUNK, 2))
    yield fd, source, data_of(source, pages)
    source.close()
    os.close(fd)


class Host:
    """What the host says of swap and of the page cache.

    Attributes:
        swapped_out: pages that went to swap so far; None if it does not tell.
        has_swap: whether there is any swap now.
        all_in_swap: whether the page cache looks as if everything were there.
        asked: how often the page cache was asked.
    """

    def __init__(self) -> None:
        self.swapped_out: int | None = 7
        self.has_swap = True
        self.all_in_swap = False
        self.asked = 0
        self._mincore = linux.mincore

    def mincore(self, address: int, length: int, into: NDArray[np.uint8]) -> None:
        self.asked += 1
        if self.all_in_swap:
            into.fill(0)
        else:
            self._mincore(address, length, into)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(mapped_source, "swapped_out", lambda: host.swapped_out)
    monkeypatch.setattr(mapped_source, "has_swap", lambda: host.has_swap)
    monkeypatch.setattr(linux, "mincore", host.mincore)
    return host


def no_lseek(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    assert end - start > 2 * PAGE, "a short gap was asked for by itself"
    yield start, end


def test_short_gaps_are_not_asked_for_one_by_one(
    scattered: tuple[int, MappedSource, PageBitmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, source, data = scattered
    touch(fd, [1, 4000, 4095])
    monkeypatch.setattr(mapped_source, "data_extents", no_lseek)
    assert covered(source.newly_touched(data)) == [1, *([] if data.test(4000) else [4000]), *range(4095, 2 * CHUNK + 1)]


def test_nothing_is_allocated_by_asking(scattered: tuple[int, MappedSource, PageBitmap]) -> None:
    fd, source, data = scattered
    assert source.newly_touched(data) == []
    assert allocated_pages(fd) == CHUNK // 2


def test_what_went_to_swap_meanwhile_is_asked_of_the_file(
    host: Host, scattered: tuple[int, MappedSource, PageBitmap]
) -> None:
    fd, source, data = scattered
    touch(fd, [1, 3, 5000])
    host.all_in_swap = True
    assert covered(source.newly_touched(data)) == [5000]
    host.swapped_out = 8
    assert covered(source.newly_touched(data)) == [1, 3, 5000]


def test_a_part_that_is_asked_again_does_not_make_older_parts_of_the_map_younger(
    host: Host, scattered: tuple[int, MappedSource, PageBitmap]
) -> None:
    fd, source, data = scattered
    host.swapped_out = 8
    source.data_ranges(PageRange(0, CHUNK))
    touch(fd, [1])
    host.all_in_swap = True
    assert covered(source.newly_touched(data)) == [1]
    source.data_ranges(PageRange(0, data.pages))
    assert source.newly_touched(data) == []


@pytest.mark.parametrize("why", ["swap is not counted", "no map was asked"])
def test_where_the_page_cache_cannot_be_trusted_the_file_is_asked(
    host: Host, scattered: tuple[int, MappedSource, PageBitmap], why: str
) -> None:
    fd, source, data = scattered
    touch(fd, [1])
    if why == "swap is not counted":
        host.swapped_out = None
        source.data_ranges(PageRange(0, data.pages))
    else:
        source = MappedSource(fd, length=data.pages * PAGE)
    assert covered(source.newly_touched(data)) == [1]
    assert host.asked == 0


def test_where_the_page_cache_may_not_be_asked_the_file_is(
    host: Host, scattered: tuple[int, MappedSource, PageBitmap]
) -> None:
    """The kernel tells it only to who may write the file."""
    fd, source, data = scattered
    touch(fd, [1])
    os.fchmod(fd, 0o600)
    assert as_nobody(lambda: (covered(source.newly_touched(data)), host.asked)) == ([1], 0)


def test_the_page_cache_of_an_ordinary_file_is_not_asked(host: Host, tmp_path: Path) -> None:
    with on_disk(tmp_path) as folder, (folder / "ram").open("w+b") as file:
        source = mapped(file.fileno(), 512)
        touch(file.fileno(), range(0, 512, 2))
        data = data_of(source, 512)
        touch(file.fileno(), [1])
        assert {1} <= set(covered(source.newly_touched(data)))
        source.close()
    assert host.asked == 0


def test_a_file_that_became_shorter_is_noticed(scattered: tuple[int, MappedSource, PageBitmap]) -> None:
    fd, source, data = scattered
    os.ftruncate(fd, PAGE)
    with pytest.raises(HostError, match="its file became shorter"):
        source.newly_touched(data)


def test_a_copying_source_reports_what_is_missing_from_the_map() -> None:
    with tempfile.TemporaryFile() as file:
        source = CopiedSource(file.fileno())
        data = PageBitmap(130)
        data.set_range(PageRange(1, 63))
        assert source.newly_touched(data) == [PageRange(0, 1), PageRange(64, 66)]
        source.close()


@given(
    st.sampled_from([1, 63, 64, 65, 200, CHUNK, CHUNK + 1, 2 * CHUNK + 100]),
    st.integers(1, 40),
    st.integers(1, 100),
    st.integers(0, 2**32),
    st.sampled_from([0, PAGE, 3 * PAGE]),
)
def test_both_ways_find_the_same(pages: int, before: int, after: int, seed: int, offset: int) -> None:
    random = np.random.default_rng(seed)
    fd = os.memfd_create("ram")
    source = mapped(fd, pages, offset=offset)
    touch(fd, np.flatnonzero(random.integers(0, before, pages) == 0) + offset // PAGE)
    data = data_of(source, pages)
    touch(fd, np.flatnonzero(random.integers(0, after, pages) == 0) + offset // PAGE)
    touch(fd, range(pages + offset // PAGE - 1, pages + offset // PAGE))
    assert covered(source.newly_touched(data)) == covered(newly_touched_by_asking(source, data))
    source.close()
    os.close(fd)


@pytest.mark.parametrize(("swap_now", "went_there", "asked"), [(False, 7, True), (True, 0, True), (True, 7, False)])
def test_the_page_cache_is_asked_for_a_scattered_map_where_nothing_can_be_in_swap(
    host: Host, swap_now: bool, went_there: int, asked: bool
) -> None:
    """A host that has no swap has nothing in it, whatever went there before that was switched off."""
    pages = 4 * CHUNK
    host.swapped_out, host.has_swap = went_there, swap_now
    fd = os.memfd_create("ram")
    source = MappedSource(fd, length=pages * PAGE)
    os.ftruncate(fd, pages * PAGE)
    touch(fd, range(0, pages, 2))
    assert covered(source.data_ranges(PageRange(0, pages))) == list(range(0, pages, 2))
    assert bool(host.asked) is asked
    source.close()
    os.close(fd)
