"""Windows: the pieces in which a shard is worked through, small enough to stay in a core's cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, PageBitmap, runs_of_ones
from parallel_fixedram.core.mapped_ram import SavedBlock
from parallel_fixedram.core.plan import Shard
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.engine.messages import Tally
from parallel_fixedram.host.channel import anonymous_memory

WINDOW_PAGES = 256
"""Pages in a window: 1 MiB, past which a larger write is not faster."""

READ_GAP_PAGES = 16
"""Absent pages read along to join two reads into one; they are holes and cost little."""

Bits = NDArray[np.uint8]
Runs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Up to WINDOW_PAGES pages of one block."""

    first: int
    """First page."""
    bits: Bits
    """1 for every page that counts, shape (pages,)."""


def windows(bitmap: PageBitmap, shard: Shard) -> Iterator[Window]:
    """The windows of a shard that have a bit set."""
    bits = bitmap.bits(shard.first_word, shard.words)
    for start in range(0, len(bits), WINDOW_PAGES):
        window = bits[start : start + WINDOW_PAGES]
        if window.any():
            yield Window(shard.first_word * WORD_PAGES + start, window)


class WindowReader:
    """Reads the pages of windows out of a mapped-ram file into one buffer.

    Args:
        channel: the file.
        page_size: of the largest page it will have to hold, bytes.
    """

    def __init__(self, channel: Channel, page_size: int) -> None:
        self._channel = channel
        self._buffer = memoryview(anonymous_memory(WINDOW_PAGES * page_size))

    def read(self, saved: SavedBlock, window: Window, tally: Tally) -> Pages:
        """The pages of a window, shape (pages, page_size / 8), zero where the bit is 0; valid until the next call."""
        started = time.perf_counter()
        size = saved.block.page_size
        everything = np.ones(len(window.bits), np.uint8)
        for start, count in merge_runs(runs_of_ones(window.bits), everything, READ_GAP_PAGES).tolist():
            view = self._buffer[start * size : (start + count) * size]
            self._channel.read(saved.page_offset(window.first + start), view)
            tally.bytes += len(view)
        pages = np.frombuffer(self._buffer, np.uint64, len(window.bits) * size // 8).reshape(-1, size // 8)
        if not window.bits.all():
            pages[window.bits == 0] = 0
        tally.read_seconds += time.perf_counter() - started
        return pages


def nonzero_pages(pages: NDArray[np.uint64]) -> Bits:
    """1 for every page with a bit set, 0 for zero pages; shape (pages,)."""
    found: Bits = (np.bitwise_or.reduce(pages, axis=1) != 0).view(np.uint8)
    return found


def merge_runs(runs: Runs, data: Bits, max_gap_pages: int) -> Runs:
    """Join runs over gaps of at most ``max_gap_pages`` pages, none of which lies outside ``data``.

    Args:
        runs: first page and length of each, shape (runs, 2), ascending.
        data: 1 for every page that may be read.
        max_gap_pages: 0 leaves the runs as they are.
    """
    if max_gap_pages == 0 or len(runs) < 2:
        return runs
    ends = runs[:, 0] + runs[:, 1]
    unreadable = np.concatenate(([0], np.cumsum(data == 0)))
    gaps = runs[1:, 0] - ends[:-1]
    join = (gaps <= max_gap_pages) & (unreadable[runs[1:, 0]] == unreadable[ends[:-1]])
    firsts = runs[np.concatenate(([True], ~join)), 0]
    lasts = ends[np.concatenate((~join, [True]))]
    return np.stack((firsts, lasts - firsts), axis=1)
