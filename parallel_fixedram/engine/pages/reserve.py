"""Space for the pages of a save: reserved before the guest is stopped, and given back where nothing was written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap, Runs
from parallel_fixedram.engine.pages.window import merge_runs
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.files.space import Space

JOIN_GAP_PAGES = 16
"""Data ranges closer than this are reserved as one, as long as nearly all of the result is data."""

MIN_RESERVED_PAGES = 64
"""Reserving shorter ranges costs more than it gains."""

GIVE_BACK_PAGES = 16
"""Reserved runs of at least this many pages that turned out to be zero become holes again."""


class Reservation:
    """Space for the pages of some blocks.

    A full file system is noticed before the guest is stopped, and writes into reserved space are faster.

    Args:
        space: of the file.
        blocks: where the pages go.
    """

    def __init__(self, space: Space, blocks: Sequence[SavedBlock]) -> None:
        self._space = space
        self._blocks = blocks
        self._reserved = [PageBitmap(saved.block.pages) for saved in blocks]

    def take(self, number: int, data: PageBitmap, gap_pages: int | None = None) -> None:
        """Reserve space for the pages of a block that may contain data; not every file system can do that.

        Args:
            number: of the block.
            data: its pages that may contain data.
            gap_pages: reserve everything, as direct writes into other space are done one at a time, including gaps of
                up to this many pages, which will be bridged. None to reserve only where that pays by itself.

        Raises:
            HostError: there is not enough space.
        """
        saved = self._blocks[number]
        if gap_pages is None:
            wanted = dense_runs(data.runs(), JOIN_GAP_PAGES)
            wanted = wanted[wanted[:, 1] >= MIN_RESERVED_PAGES]
        else:
            wanted = merge_runs(data.runs(), gap_pages)
        offset, size, taken = saved.page_offset(0), saved.block.page_size, 0
        if self._space.is_in_memory():  # nothing is allocated there: one call finds out whether all of it fits
            self._space.reserve(offset, int(wanted[:, 1].sum()) * size)
            return
        for first, count in wanted.tolist():
            if not self._space.reserve(offset + first * size, count * size):
                break
            taken += 1
        self._reserved[number].set_runs(wanted[:taken])

    def give_back(self, file: Sequence[PageBitmap], gap_pages: int = 0) -> None:
        """Make holes where space was reserved for pages that are not in the file, except in gaps that were bridged."""
        for saved, reserved, present in zip(self._blocks, self._reserved, file, strict=True):
            reserved.words &= ~present.words
            left = reserved.runs()
            for first, count in left[left[:, 1] >= max(GIVE_BACK_PAGES, gap_pages + 1)].tolist():
                self._space.give_back(saved.page_offset(first), count * saved.block.page_size)


def dense_runs(runs: Runs, max_gap_pages: int) -> Runs:
    """Join runs over gaps of at most ``max_gap_pages`` pages, as long as gaps are at most an eighth of the result.

    Runs are shape (runs, 2), first page and length of each. Single pages at random are hardly ever joined, so only runs
    that can be joined to the next one go through the Python loop.
    """
    firsts, lengths = runs[:, 0], runs[:, 1].copy()
    spans = firsts[1:] + lengths[1:] - firsts[:-1]
    close = firsts[1:] - firsts[:-1] - lengths[:-1] <= max_gap_pages
    begins = np.flatnonzero(close & (8 * (lengths[:-1] + lengths[1:]) >= 7 * spans)).tolist()
    starts, counts, alone = firsts.tolist(), runs[:, 1].tolist(), np.ones(len(runs), np.bool_)
    last = -1
    for begin in begins:
        if begin <= last:
            continue
        first, data_pages, last = starts[begin], counts[begin], begin
        while last + 1 < len(starts):
            start, count = starts[last + 1], counts[last + 1]
            gap = start - starts[last] - counts[last]
            if gap > max_gap_pages or 8 * (data_pages + count) < 7 * (start + count - first):
                break
            data_pages, last = data_pages + count, last + 1
        alone[begin + 1 : last + 1] = False
        lengths[begin] = starts[last] + counts[last] - first
    return np.stack((firsts[alone], lengths[alone]), axis=1)
