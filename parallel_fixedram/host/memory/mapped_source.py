"""Guest RAM as a file that is mapped: pages are read without a copy, and pages that the guest never touched stay so.

Reading a hole of shared memory through a mapping allocates it: scanning an empty 2 GiB memfd would cost 2 GiB of
memory. ``lseek(SEEK_DATA)`` takes microseconds to tell which ranges have ever been written (swapped pages count as
data); where there are many ranges, the page cache is asked instead. Readers must stay inside ``data_ranges``.
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
"""Pages per call of ``mincore``."""

_MANY_GAPS = 64
"""With more gaps than this in a chunk, one ``mincore`` is quicker than an ``lseek`` per gap (measured: about 100)."""

_MANY_EXTENTS = 1024
"""With more data ranges than this, the page cache may answer quicker than the file system."""

_SPARSE_PAGES = 64
"""It does if a data range and the hole after it have fewer pages than this on average (measured: about 100)."""

_BLOCK_BYTES = 512
"""The unit of ``st_blocks``."""

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
            except ValueError as error:  # Python's mmap checks the file's size
                raise HostError("cannot map guest RAM: its file became shorter") from error
            self._pages = np.frombuffer(self._view, np.uint64).reshape(-1, TARGET_PAGE_SIZE // 8)
        return self._view

    def pages(self, first: int, count: int, wanted: Bits | None = None) -> Pages:
        """A view of the mapping, without a copy (PageSource.pages).

        Pages that are brought in from swap go back there at the next call.
        """
        assert self._pages is not None, "open() comes first"
        if self._from_swap:
            self._from_swap.give_back()
            self._from_swap.bring_in(first, self._resident_of(first, count), wanted)
        return self._pages[first : first + count]

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """What SEEK_DATA and SEEK_HOLE find; everything if the file system cannot tell (PageSource.data_ranges)."""
        if self._swapped_out is None or within.count * TARGET_PAGE_SIZE == self._length:
            self._swapped_out = swapped_out()  # before looking: what goes to swap later may be missing in the cache
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
        """The data ranges that the file system reports, in whole pages."""
        if _is_all_there(self._fd):
            yield within
            return
        first = self._offset + within.first * TARGET_PAGE_SIZE
        for start, end in data_extents(self._fd, first, first + within.count * TARGET_PAGE_SIZE):
            page = (start - self._offset) // TARGET_PAGE_SIZE
            yield PageRange(page, -(-(end - self._offset) // TARGET_PAGE_SIZE) - page)

    def _never_swapped(self) -> bool:
        """Whether every page with data is in the page cache, because nothing is in swap."""
        return self._nothing_in_swap and self._cache_tells()

    def _resident(self, within: PageRange) -> list[PageRange]:
        """The pages in the page cache; if anything went to swap meanwhile, the data that the file system reports."""
        found, opened = PageBitmap(self._length // TARGET_PAGE_SIZE), self._pages is not None
        for page in range(within.first // _CHUNK_PAGES * _CHUNK_PAGES, within.end, _CHUNK_PAGES):
            found.put_bits(page // WORD_PAGES, self._in_cache(page, found.pages))
        if not opened:  # each reader maps the file itself, and so notices if it became shorter
            self._pages = self._view = None
        if swapped_out() != self._swapped_out:
            return list(self._extents(within))
        runs = found.runs()
        first, end = np.maximum(runs[:, 0], within.first), np.minimum(runs[:, 0] + runs[:, 1], within.end)
        inside = np.flatnonzero(first < end)
        return [PageRange(*each) for each in zip(first[inside].tolist(), (end - first)[inside].tolist(), strict=True)]

    def newly_touched(self, data: PageBitmap) -> list[PageRange]:
        """Asks the page cache where there are many gaps, the file system where there are few
        (PageSource.newly_touched).

        ``lseek`` takes microseconds per gap, however small. ``mincore`` takes less than a tenth of a microsecond per
        page, gap or not, and in shared memory it finds the same pages except those in swap. A page that was in swap
        when the data map was made is in the map already; if anything went to swap since, only ``lseek`` can tell. The
        page tables of the guest's process would be quicker still, but lack what other processes, such as a device back
        end, wrote into the same memory.
        """
        if data.count() == data.pages:
            return []
        scattered = _scattered(data)
        if not scattered.any() or not self._cache_tells():
            return newly_touched_by_asking(self, data)
        found = PageBitmap(data.pages)
        for chunk in np.flatnonzero(scattered).tolist():
            found.put_bits(chunk * _CHUNK_WORDS, self._in_cache(chunk * _CHUNK_PAGES, data.pages))
        if swapped_out() != self._swapped_out:  # after looking: the count rises before a page leaves the cache
            return newly_touched_by_asking(self, data)
        found.words &= ~data.words
        # the chunks that the cache has answered for are left out, as if all of them were data
        rest = PageBitmap(data.pages, data.words | np.repeat(scattered * _ALL_ONES, _CHUNK_WORDS)[: len(data.words)])
        for each in newly_touched_by_asking(self, rest):
            found.set_range(each)
        return found.ranges()

    def _cache_tells(self) -> bool:
        """Whether every page with data that is not in swap is in the page cache, and the kernel tells us."""
        if self._swapped_out is None or TARGET_PAGE_SIZE != mmap.PAGESIZE or not _is_in_shared_memory(self._fd):
            return False
        return os.access(f"/proc/self/fd/{self._fd}", os.W_OK, effective_ids=True)

    def _in_cache(self, first: int, pages: int) -> NDArray[np.uint8]:
        """1 for each page of the chunk from page ``first`` on that is in the page cache, otherwise 0."""
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
        """Unmap and close; views that are still in use stay valid (PageSource.close)."""
        self._pages = self._view = self._from_swap = None
        if self._fd >= 0:
            linux.close(self._fd)
            self._fd = -1


class _FromSwap:
    """Pages of a mapping that were in swap when they were read.

    Bringing them in all at once is many times faster than page by page. Pages of shared memory lose their place in swap
    when they come in, so paging them out again writes them. We do it all the same: if the guest's memory is limited,
    the kernel would otherwise page out pages that the guest works with (measured). Pages that the guest uses by then
    stay.

    Args:
        view: the mapping.
    """

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view
        self._swapped: Bits = np.zeros(len(view) // TARGET_PAGE_SIZE, np.uint8)
        self._looked_at: list[tuple[int, int]] = []

    def bring_in(self, first: int, resident: Bits, wanted: Bits | None) -> None:
        """Bring in the wanted pages that are in swap or ever were.

        Args:
            first: number of the first page.
            resident: 1 for each page from there on that is in memory. A page that was paged out may still look
                resident, until its memory is needed.
            wanted: 1 for each page that will be read; None for all.
        """
        part = self._swapped[first : first + len(resident)]
        part |= resident ^ 1
        runs = runs_of_ones(part if wanted is None else part & wanted)
        self._looked_at = [(first + start, length) for start, length in runs.tolist()]
        self._advise(linux.MADV_WILLNEED)

    def give_back(self) -> None:
        """Page out what the last call brought in."""
        self._advise(linux.MADV_PAGEOUT)

    def _advise(self, advice: int) -> None:
        for first, count in self._looked_at:
            with contextlib.suppress(OSError):  # it is only advice
                self._view.madvise(advice, first * TARGET_PAGE_SIZE, count * TARGET_PAGE_SIZE)


def _is_all_there(fd: int) -> bool:
    """Whether a file in shared memory has no holes: SEEK_HOLE would visit every page to find that out."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return status.st_blocks * _BLOCK_BYTES >= status.st_size and _is_in_shared_memory(fd)


def _is_in_shared_memory(fd: int) -> bool:
    """Whether the file is in shared memory; False if that cannot be told."""
    try:
        return linux.is_tmpfs(fd)
    except OSError:
        return False


def _scattered(data: PageBitmap) -> NDArray[np.bool_]:
    """Which chunks of the block have so many gaps that asking for every page is quicker, shape (chunks,).

    A gap begins at each 0 bit of ``data`` whose lower neighbour is not 0; a word's lowest bit follows the highest bit
    of the word before.
    """
    gaps = ~data.words
    # a gap begins at a clear bit that has no clear bit before it; that of a word's first bit is in the word before
    carry = np.concatenate((np.zeros(1, np.uint64), gaps[:-1] >> np.uint64(WORD_PAGES - 1)))
    begins = np.bitwise_count(gaps & ~((gaps << np.uint64(1)) | carry))
    return np.add.reduceat(begins, np.arange(0, len(begins), _CHUNK_WORDS), dtype=np.int64) > _MANY_GAPS


def swapped_out() -> int | None:
    """How many pages the host has put into swap since it was booted; None if it does not tell."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            counts = dict(line.split() for line in file)
        return int(counts["pswpout"]) + sum(int(counts.get(name, 0)) for name in ("zswpout", "swpout_zero"))
    except (OSError, KeyError, ValueError):
        return None
