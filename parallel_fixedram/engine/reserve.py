"""Space for the pages of a save: reserved before the guest is stopped, given back where nothing was written."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.mapped_ram import SavedBlock
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.engine.window import merge_runs
from parallel_fixedram.host.publish import PendingFile

JOIN_GAP_PAGES = 16
"""Data ranges closer than this are reserved as one, as long as it is nearly all data."""

MIN_RESERVED_PAGES = 64
"""Shorter ranges are not reserved: that costs more than it gains."""

GIVE_BACK_PAGES = 16
"""Reserved runs of at least this many pages that turned out to be zero are made holes again."""


class Reservation:
    """Space in a file in the making.

    A full file system is noticed before the guest is stopped, and writes into reserved space are faster.

    Args:
        pending: the file.
        blocks: where the pages go.
    """

    def __init__(self, pending: PendingFile, blocks: Sequence[SavedBlock]) -> None:
        self._pending = pending
        self._blocks = blocks
        self._reserved = [PageBitmap(saved.block.pages) for saved in blocks]

    def take(self, number: int, data: PageBitmap, gap_pages: int | None = None) -> None:
        """Reserve space for the pages of block ``number`` that may hold something; not every file system can.

        Args:
            number: the block.
            data: its pages that may hold something.
            gap_pages: gaps of up to so many pages will be written along, and every range is to be reserved: direct
                writes into space that is not go one by one. None to reserve only where that is worth it in itself.

        Raises:
            HostError: there is not enough space.
        """
        saved = self._blocks[number]
        if gap_pages is None:
            wanted = [each for each in dense_ranges(data.ranges(), JOIN_GAP_PAGES) if each.count >= MIN_RESERVED_PAGES]
        else:
            wanted = [PageRange(*each) for each in merge_runs(data.runs(), gap_pages).tolist()]
        for pages in wanted:
            if not self._pending.reserve(saved.page_offset(pages.first), pages.count * saved.block.page_size):
                return
            self._reserved[number].set_range(pages)

    def give_back(self, file: Sequence[PageBitmap], gap_pages: int = 0) -> None:
        """Make holes of what was reserved for pages that are not in the file, but for gaps that were written along."""
        for saved, reserved, present in zip(self._blocks, self._reserved, file, strict=True):
            reserved.words &= ~present.words
            for pages in reserved.ranges():
                if pages.count >= max(GIVE_BACK_PAGES, gap_pages + 1):
                    offset = saved.page_offset(pages.first)
                    self._pending.channel.punch(offset, pages.count * saved.block.page_size)


def dense_ranges(ranges: Sequence[PageRange], max_gap_pages: int) -> list[PageRange]:
    """Ranges joined over gaps of at most ``max_gap_pages`` pages, while gaps are at most an eighth of the result."""
    joined: list[PageRange] = []
    data_pages = 0
    for each in ranges:
        if joined and each.first - joined[-1].end <= max_gap_pages:
            length = each.end - joined[-1].first
            if 8 * (data_pages + each.count) >= 7 * length:
                joined[-1] = PageRange(joined[-1].first, length)
                data_pages += each.count
                continue
        joined.append(each)
        data_pages = each.count
    return joined
