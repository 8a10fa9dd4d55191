"""Ledger: what is known about each page, in anonymous shared memory that workers inherit from the coordinator.

A worker writes only ``present`` and ``digests``, and only for its shard; the coordinator writes only words that are in
no shard in flight. So nothing needs a lock. Where nothing is known about pages, memory is never touched and so never
allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_BYTES, PageBitmap, words_for
from parallel_fixedram.core.protocols import DirtySource, GuestBlock
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host.memory.anonymous import anonymous_memory


def shared_words(count: int) -> NDArray[np.uint64]:
    """Zeroed words that this process shares with later forks, shape (count,); HostError if there is no memory."""
    return np.frombuffer(anonymous_memory(max(count, 1) * WORD_BYTES, shared=True), np.uint64, count)


def shared_bitmaps(blocks: Sequence[RAMBlock]) -> list[PageBitmap]:
    """A clear bitmap for every block, shared with later forks."""
    return [PageBitmap(block.pages, shared_words(words_for(block.pages))) for block in blocks]


class Ledger:
    """What is known about each page; a bitmap or array for each block.

    Args:
        blocks: in the file's order.

    Attributes:
        dirty: pages to write in this round.
        data: pages that may be read; all others were never touched by the guest, and are zero.
        present: pages that are in the file.
        digests: XXH3-64 of each page as it is in the file; anything where ``present`` is clear.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self.dirty = shared_bitmaps(blocks)
        self.data = shared_bitmaps(blocks)
        self.present = shared_bitmaps(blocks)
        self.digests = [shared_words(block.pages) for block in blocks]

    def all_dirty(self) -> None:
        """Mark every page as dirty."""
        for bitmap in self.dirty:
            bitmap.set_all()

    def leave_out_holes(self) -> None:
        """Mark pages outside ``data`` as clean: they are zero and always were."""
        for dirty, data in zip(self.dirty, self.data, strict=True):
            dirty.words &= data.words

    def map_data(self, guest_blocks: Sequence[GuestBlock]) -> None:
        """Note which pages may contain data."""
        for each, bitmap in zip(guest_blocks, self.data, strict=True):
            whole = PageRange(0, each.block.pages)
            bitmap.set_ranges([whole] if each.keeps_zero_pages else each.source.data_ranges(whole))

    def map_newly_touched(self, guest_blocks: Sequence[GuestBlock]) -> None:
        """Note which pages were touched since then."""
        for each, bitmap in zip(guest_blocks, self.data, strict=True):
            bitmap.set_ranges(each.source.newly_touched(bitmap))

    def add_dirty(self, source: DirtySource, guest_blocks: Sequence[GuestBlock]) -> None:
        """Note what was written since the last time; those pages that are not holes are added to ``data``."""
        touched = [PageBitmap(bitmap.pages) for bitmap in self.dirty]
        source.sync(touched)
        for each, new, dirty, data in zip(guest_blocks, touched, self.dirty, self.data, strict=True):
            dirty.words |= new.words
            new.words &= ~data.words
            for pages in new.ranges() if new.words.any() else ():  # a coarse log names untouched pages as well
                for found in each.source.data_ranges(pages):
                    data.set_range(found)
