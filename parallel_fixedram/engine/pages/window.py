"""Windows: the pieces in which a shard is processed, small enough to stay in a core's cache."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, PageBitmap, Runs, runs_of_ones
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.memory.anonymous import huge_memory

DIRECT_READ_PAGES = 512
"""Pages in a window that is read with O_DIRECT: 2 MiB, a huge page, which a device reads at full speed."""

MAX_SCAN_RUNS = 8
"""Up to this many runs in a window are tested for zero pages in place; if there are more, pages are copied out
first."""

_FEW_PAGES = 32
"""Up to this many pages are copied out in any case: that takes less time than a call for each run."""

_SAMPLE_PAGES = 16
"""One page in this many is tested first: if one of them is not zero, testing all in one go would be in vain."""

READ_GAP_PAGES = 16
"""Most absent pages to read as well in order to join two reads; they are holes and cost little."""


@dataclass(frozen=True, slots=True)
class Window:
    """Some pages of one block, usually up to WINDOW_PAGES."""

    first: int
    """First page."""
    bits: Bits
    """1 for every page that counts, shape (pages,)."""


def pieces(wanted: Bits, pages: int, *, joined: bool) -> list[slice]:
    """Where the windows of a shard are, each with a wanted page in it.

    Args:
        wanted: 1 for every page that counts, shape (pages,).
        pages: length of a window.
        joined: whether windows become one for as long as no more than ``pages`` pages in it are wanted: a window takes
            0.2 ms, however few they are.
    """
    found: list[slice] = []
    starts, room = np.arange(0, len(wanted), pages), 0
    counts = np.add.reduceat(wanted, starts, dtype=np.int64)
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        if not count:
            continue
        if joined and count <= room:
            found[-1] = slice(found[-1].start, start + pages)
        else:
            found.append(slice(start, start + pages))
            room = pages
        room -= count
    return found


def windows(bitmap: PageBitmap, shard: Shard, pages: int = WINDOW_PAGES) -> Iterator[Window]:
    """The windows of a shard, of up to ``pages`` pages each, that have a bit set."""
    bits = bitmap.bits(shard.first_word, shard.words)
    for start in range(0, len(bits), pages):
        window = bits[start : start + pages]
        if window.any():
            yield Window(shard.first_word * WORD_PAGES + start, window)


class WindowReader:
    """Reads the pages of windows from a mapped-ram file into one buffer.

    Args:
        channel: the file.
        page_size: of the largest page, bytes.
        window_pages: of the largest window.
        gap_pages: most absent pages to read as well in order to join two reads.
    """

    def __init__(
        self,
        channel: Channel,
        page_size: int,
        window_pages: int = WINDOW_PAGES,
        gap_pages: int = READ_GAP_PAGES,
    ) -> None:
        self._channel = channel
        self._gap_pages = gap_pages
        self._buffer = huge_memory(window_pages * page_size)

    def each(self, saved: SavedBlock, windows: Iterable[Window], tally: Tally) -> Iterator[tuple[Window, Pages]]:
        """Each window with its pages, which are valid until the next one is requested."""
        for window in windows:
            yield window, self.read(saved, window, tally)

    def read(self, saved: SavedBlock, window: Window, tally: Tally) -> Pages:
        """The pages of a window, shape (pages, page_size / 8), zero where the bit is 0; valid until the next call."""
        started = time.perf_counter()
        size = saved.block.page_size
        for start, count in merge_runs(runs_of_ones(window.bits), self._gap_pages).tolist():
            view = self._buffer[start * size : (start + count) * size]
            self._channel.read(saved.page_offset(window.first + start), view)
        tally.bytes += int(np.count_nonzero(window.bits)) * size
        pages = np.frombuffer(self._buffer, np.uint64, len(window.bits) * size // 8).reshape(-1, size // 8)
        if not window.bits.all():
            pages[window.bits == 0] = 0
        tally.read_seconds += time.perf_counter() - started
        return pages


def nonzero_pages(pages: Pages) -> Bits:
    """1 for every page with a bit set, 0 for zero pages; shape (pages,).

    Windows of only zero pages are tested in one go, which is fastest by far. In others, most pages are decided by their
    first word, and only those where it is zero are tested in full.
    """
    if pages.flags.c_contiguous and not pages[::_SAMPLE_PAGES, 0].any() and not np.bitwise_or.reduce(pages.reshape(-1)):
        return np.zeros(len(pages), np.uint8)
    found: Bits = (pages[:, 0] != 0).view(np.uint8)
    rest = runs_of_ones(found == 0)
    if len(rest) > MAX_SCAN_RUNS:
        some = np.flatnonzero(found == 0)
        found[some] = np.bitwise_or.reduce(pages[some], axis=1) != 0
    else:
        for start, count in rest.tolist():
            found[start : start + count] = np.bitwise_or.reduce(pages[start : start + count], axis=1) != 0
    return found


def merge_runs(runs: Runs, max_gap_pages: int, only: Bits | None = None) -> Runs:
    """Join runs over gaps of at most ``max_gap_pages`` pages.

    Args:
        runs: first page and length of each, shape (runs, 2), ascending.
        max_gap_pages: 0 leaves the runs as they are.
        only: 1 for every page that may be part of a gap; None if all may.
    """
    if max_gap_pages == 0 or len(runs) < 2:
        return runs
    ends = runs[:, 0] + runs[:, 1]
    join = runs[1:, 0] - ends[:-1] <= max_gap_pages
    if only is not None:
        # others[n] counts forbidden pages before page n: a gap has none if the count is the same at both its ends
        others = np.concatenate(([0], np.cumsum(only == 0)))
        join &= others[runs[1:, 0]] == others[ends[:-1]]
    firsts = runs[np.concatenate(([True], ~join)), 0]
    lasts = ends[np.concatenate((~join, [True]))]
    return np.stack((firsts, lasts - firsts), axis=1)


def covered(runs: Runs, pages: int) -> Bits:
    """1 for every page in one of the runs, which must be disjoint, shape (pages,).

    A run is +1 at its beginning and -1 after its end; the running sum is 1 inside it.
    """
    steps = np.zeros(pages + 1, np.int8)
    steps[runs[:, 0]] = 1
    steps[runs[:, 0] + runs[:, 1]] -= 1  # after the ones: where a run begins as another ends, the sum stays
    found: Bits = np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8)
    return found


def nonzero_among(pages: Pages, wanted: Bits, data: Bits) -> Bits:
    """1 for every wanted page of a window that is not zero; reads no page outside ``data``.

    Args:
        pages: the window, shape (pages, page_size / 8).
        wanted: 1 for every page of interest.
        data: 1 for every page that may be read.
    """
    found = np.zeros(len(data), np.uint8)
    asked = wanted & data
    runs = runs_of_ones(asked)
    if len(runs) > MAX_SCAN_RUNS or (len(runs) > 1 and np.count_nonzero(asked) <= _FEW_PAGES):
        some = np.flatnonzero(asked)
        # most are decided by their first word, without a copy of the page
        found[some] = pages[some, 0] != 0
        rest = some[found[some] == 0]
        found[rest] = nonzero_pages(pages[rest])
        return found
    for start, count in runs.tolist():
        found[start : start + count] = nonzero_pages(pages[start : start + count])
    return found
