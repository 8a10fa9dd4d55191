"""Guest RAM as a file that is mapped: its pages are read without a copy, and without touching what the guest never did.

Reading a hole of shared memory through a mapping allocates it, so a scan of an empty 2 GiB memfd costs 2 GiB of memory;
``lseek(SEEK_DATA)`` tells for microseconds which ranges have ever been written (swapped pages count as data), and where
there are many, the page cache is asked instead. Whoever reads stays inside ``data_ranges``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, PageBitmap, runs_of_ones
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import data_extents
from parallel_fixedram.host.memory.copied_source import newly_touched_by_asking
from parallel_fixedram.host.memory.swapped import has_swap

_CHUNK_WORDS = 64
_CHUNK_PAGES = _CHUNK_WORDS * WORD_PAGES
"""Pages asked for with one ``mincore``."""

_MANY_GAPS = 64
"""Gaps in a chunk from which on one ``mincore`` is quicker than an ``lseek`` for each of them (measured: about 100)."""

_MANY_EXTENTS = 1024
"""Data ranges from which on it is worth asking whether the page cache is quicker to ask than the file system."""

_SPARSE_PAGES = 64
"""Pages a data range and the hole after it take on average, up to which it is (measured: about 100)."""

_BLOCK_BYTES = 512
"""Of ``st_blocks``."""

_ALL_ONES = np.uint64((1 << WORD_PAGES) - 1)


class MappedSource:
    """Pages of a shared-memory file, mapped read-only by each process that reads them.

    Args:
        fd: descriptor of the file, readable; duplicated.
        offset: where the block starts in the file, bytes, a multiple of the host page size.
        length: bytes of the block, whole target pages.
    """

    tells_holes = True
    views_stay_valid = True

    def __init__(self, fd: int, *, offset: int = 0, length: int) -> None:
        self._fd = os.dup(fd)
        self._offset = offset
        self._length = length
        self._view: mmap.mmap | None = None
        self._pages: Pages | None = None
        self._swapped_out: int | None = None
        self._nothing_in_swap = False
        self._from_swap: _FromSwap | None = None

    def open(self) -> None:
        """Map the block (PageSource.open)."""
        view = self._map()
        if TARGET_PAGE_SIZE == mmap.PAGESIZE and _is_in_shared_memory(self._fd) and has_swap():
            self._from_swap = _FromSwap(view)

    def _map(self) -> mmap.mmap:
        if self._view is None:
            try:
                self._view = mmap.mmap(self._fd, self._length, mmap.MAP_SHARED, mmap.PROT_READ, offset=self._offset)
            except OSError as error:
                raise HostError.from_os("cannot map guest RAM", error) from error
            except ValueError as error:  # mmap looks at the file's size itself
                raise HostError("cannot map guest RAM: its file became shorter") from error
            self._pages = np.frombuffer(self._view, np.uint64).reshape(-1, TARGET_PAGE_SIZE // 8)
        return self._view

    def pages(self, first: int, count: int, wanted: Bits | None = None) -> Pages:
        """A view of the mapping: no byte is copied (PageSource.pages).

        What comes from swap to be looked at goes back there with the next call.
        """
        assert self._pages is not None, "open() comes first"
        if self._from_swap:
            self._from_swap.give_back()
            self._from_swap.bring_in(first, self._resident_of(first, count), wanted)
        return self._pages[first : first + count]

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """What SEEK_DATA and SEEK_HOLE say; everything where the file system does not know (PageSource.data_ranges)."""
        if self._swapped_out is None or within.count * TARGET_PAGE_SIZE == self._length:
            self._swapped_out = swapped_out()  # asked before: what goes to swap from here on may be missed by the cache
            self._nothing_in_swap = self._swapped_out == 0 or not has_swap()
        found: list[PageRange] = []
        for each in self._extents(within):
            if (
                len(found) > _MANY_EXTENTS
                and each.end < within.first + len(found) * _SPARSE_PAGES
                and self._never_swapped()
            ):
                return [*found, *self._resident(PageRange(each.first, within.end - each.first))]
            if found and found[-1].end >= each.first:
                each = PageRange(found[-1].first, each.end - found.pop().first)
            found.append(each)
        return found

    def _extents(self, within: PageRange) -> Iterator[PageRange]:
        """What the file system says is data, as whole pages."""
        if _is_all_there(self._fd):
            yield within
            return
        first = self._offset + within.first * TARGET_PAGE_SIZE
        for start, end in data_extents(self._fd, first, first + within.count * TARGET_PAGE_SIZE):
            page = (start - self._offset) // TARGET_PAGE_SIZE
            yield PageRange(page, -(-(end - self._offset) // TARGET_PAGE_SIZE) - page)

    def _never_swapped(self) -> bool:
        """Whether the page cache knows every page that holds something, since nothing is in swap."""
        return self._nothing_in_swap and self._cache_tells()

    def _resident(self, within: PageRange) -> list[PageRange]:
        """What is in the page cache, or, if anything went to swap while that was asked, what the file system says."""
        found, opened = PageBitmap(self._length // TARGET_PAGE_SIZE), self._pages is not None
        for page in range(within.first // _CHUNK_PAGES * _CHUNK_PAGES, within.end, _CHUNK_PAGES):
            found.put_bits(page // WORD_PAGES, self._in_cache(page, found.pages))
        if not opened:  # whoever reads maps for itself, and notices then if the file became shorter
            self._pages = self._view = None
        if swapped_out() != self._swapped_out:
            return list(self._extents(within))
        runs = found.runs()
        first, end = np.maximum(runs[:, 0], within.first), np.minimum(runs[:, 0] + runs[:, 1], within.end)
        inside = np.flatnonzero(first < end)
        return [PageRange(*each) for each in zip(first[inside].tolist(), (end - first)[inside].tolist(), strict=True)]

    def newly_touched(self, data: PageBitmap) -> list[PageRange]:
        """Asks the page cache where gaps are many, the file where they are few (PageSource.newly_touched).

        ``lseek`` takes microseconds for each gap, however small; ``mincore`` takes less than a tenth of one for each
        page, gap or not, and in shared memory finds the same pages but those in swap. A page that was in swap when the
        data map was made is in it; if anything went there since, only ``lseek`` knows. The page tables of the process
        that runs the guest would be quicker still, but what another process wrote into the same memory, such as a back
        end of one of its devices, is not in them.
        """
        if data.count() == data.pages:
            return []
        scattered = _scattered(data)
        if not scattered.any() or not self._cache_tells():
            return newly_touched_by_asking(self, data)
        found = PageBitmap(data.pages)
        for chunk in np.flatnonzero(scattered).tolist():
            found.put_bits(chunk * _CHUNK_WORDS, self._in_cache(chunk * _CHUNK_PAGES, data.pages))
        if swapped_out() != self._swapped_out:  # asked afterwards: a page counts before it leaves the cache
            return newly_touched_by_asking(self, data)
        found.words &= ~data.words
        rest = PageBitmap(data.pages, data.words | np.repeat(scattered * _ALL_ONES, _CHUNK_WORDS)[: len(data.words)])
        for each in newly_touched_by_asking(self, rest):
            found.set_range(each)
        return found.ranges()

    def _cache_tells(self) -> bool:
        """Whether the page cache knows every page that holds something, and tells us."""
        if self._swapped_out is None or TARGET_PAGE_SIZE != mmap.PAGESIZE or not _is_in_shared_memory(self._fd):
            return False
        return os.access(f"/proc/self/fd/{self._fd}", os.W_OK, effective_ids=True)

    def _in_cache(self, first: int, pages: int) -> NDArray[np.uint8]:
        """0 or 1 for each page of the chunk that begins at page ``first``."""
        self._map()
        return self._resident_of(first, min(_CHUNK_PAGES, pages - first))

    def _resident_of(self, first: int, count: int) -> NDArray[np.uint8]:
        assert self._pages is not None, "open() comes first"
        resident = np.empty(count, np.uint8)
        try:
            linux.mincore(self._pages[first:].ctypes.data, len(resident) * TARGET_PAGE_SIZE, resident)
        except OSError as error:
            raise HostError.from_os("cannot ask which pages of guest RAM are in memory", error) from error
        resident &= 1
        return resident

    def close(self) -> None:
        """Unmap and close; views handed out stay valid until they are dropped (PageSource.close)."""
        self._pages = self._view = self._from_swap = None
        if self._fd >= 0:
            linux.close(self._fd)
            self._fd = -1


class _FromSwap:
    """Pages of a mapping that were in swap when they were looked at.

    All at once they come in many times faster than page by page. In shared memory they have no place in swap any more,
    so paging them out writes; but of a guest that is held to less memory than it has, the kernel would page out other
    pages instead, those it works with (measured). Pages that the guest uses by then stay.

    Args:
        view: the mapping.
    """

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view
        self._swapped: Bits = np.zeros(len(view) // TARGET_PAGE_SIZE, np.uint8)
        self._looked_at: list[tuple[int, int]] = []

    def bring_in(self, first: int, resident: Bits, wanted: Bits | None) -> None:
        """Bring in what is wanted of pages that were in swap now or before.

        Args:
            first: number of the first page.
            resident: 1 for each page from there on that is in memory. What was paged out may look as if it were, until
                its memory is needed.
            wanted: 1 for each page that will be looked at; None for all.
        """
        part = self._swapped[first : first + len(resident)]
        part |= resident ^ 1
        runs = runs_of_ones(part if wanted is None else part & wanted)
        self._looked_at = [(first + start, length) for start, length in runs.tolist()]
        self._advise(linux.MADV_WILLNEED)

    def give_back(self) -> None:
        """Page out what was brought in last."""
        self._advise(linux.MADV_PAGEOUT)

    def _advise(self, advice: int) -> None:
        for first, count in self._looked_at:
            with contextlib.suppress(OSError):  # it is advice
                self._view.madvise(advice, first * TARGET_PAGE_SIZE, count * TARGET_PAGE_SIZE)


def _is_all_there(fd: int) -> bool:
    """Whether shared memory has no hole at all: quicker than to have every page of it passed by."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return status.st_blocks * _BLOCK_BYTES >= status.st_size and _is_in_shared_memory(fd)


def _is_in_shared_memory(fd: int) -> bool:
    """Whether that can be told, and is so."""
    try:
        return linux.is_tmpfs(fd)
    except OSError:
        return False


def _scattered(data: PageBitmap) -> NDArray[np.bool_]:
    """In which chunks of the block so many gaps begin that asking for every page is quicker."""
    gaps = ~data.words
    carry = np.concatenate((np.zeros(1, np.uint64), gaps[:-1] >> np.uint64(WORD_PAGES - 1)))
    begins = np.bitwise_count(gaps & ~((gaps << np.uint64(1)) | carry))
    return np.add.reduceat(begins, np.arange(0, len(begins), _CHUNK_WORDS), dtype=np.int64) > _MANY_GAPS


def swapped_out() -> int | None:
    """How often the host has taken memory out of the page cache into swap since it started; None where it tells not."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            counts = dict(line.split() for line in file)
        return int(counts["pswpout"]) + sum(int(counts.get(name, 0)) for name in ("zswpout", "swpout_zero"))
    except (OSError, KeyError, ValueError):
        return None
