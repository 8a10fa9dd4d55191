"""Ledger: what is known of each page, in anonymous shared memory that coordinator and workers have from the fork on.

A worker writes only ``present`` and ``digests``, and only those of its shard; the coordinator writes only words that
are in no shard in flight. So nothing needs a lock. Memory of pages that nothing is known of is never touched, and so
never allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_BYTES, PageBitmap, words_for
from parallel_fixedram.core.protocols import DirtySource, GuestBlock
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host.files.channel import anonymous_memory


def shared_words(count: int) -> NDArray[np.uint64]:
    """Zeroed words that this process and its later forks share, shape (count,); HostError if there is no memory."""
    return np.frombuffer(anonymous_memory(max(count, 1) * WORD_BYTES, shared=True), np.uint64, count)


def shared_bitmaps(blocks: Sequence[RAMBlock]) -> list[PageBitmap]:
    """A clear bitmap for every block, shared with later forks."""
    return [PageBitmap(block.pages, shared_words(words_for(block.pages))) for block in blocks]


class Ledger:
    """What is known of each page; one bitmap or array a block.

    Args:
        blocks: in the file's order.

    Attributes:
        dirty: pages to write in this round.
        data: pages that may be read: outside of them guest RAM was never touched and is zero.
        present: pages that are in the file.
        digests: XXH3-64 of each page as it is in the file; anything where ``present`` is clear.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self.dirty = shared_bitmaps(blocks)
        self.data = shared_bitmaps(blocks)
        self.present = shared_bitmaps(blocks)
        self.digests = [shared_words(block.pages) for block in blocks]

    def all_dirty(self) -> None:
        """Every page is to be written."""
        for bitmap in self.dirty:
            bitmap.set_all()

    def leave_out_holes(self) -> None:
        """Pages outside of ``data`` are zero and always were: they are not to be written."""
        for dirty, data in zip(self.dirty, self.data, strict=True):
            dirty.words &= data.words

    def map_data(self, guest_blocks: Sequence[GuestBlock]) -> None:
        """Note which pages may hold something."""
        for each, bitmap in zip(guest_blocks, self.data, strict=True):
            whole = PageRange(0, each.block.pages)
            bitmap.set_ranges([whole] if each.keeps_zero_pages else each.source.data_ranges(whole))

    def map_newly_touched(self, guest_blocks: Sequence[GuestBlock]) -> None:
        """Note the pages that were touched since."""
        for each, bitmap in zip(guest_blocks, self.data, strict=True):
            bitmap.set_ranges(each.source.newly_touched(bitmap))

    def add_dirty(self, source: DirtySource, guest_blocks: Sequence[GuestBlock]) -> None:
        """Note what was written since the last time; those of these pages that are no holes now join ``data``."""
        touched = [PageBitmap(bitmap.pages) for bitmap in self.dirty]
        source.sync(touched)
        for each, new, dirty, data in zip(guest_blocks, touched, self.dirty, self.data, strict=True):
            dirty.words |= new.words
            new.words &= ~data.words
            for pages in new.ranges() if new.words.any() else ():  # a coarse log also names pages never touched
                for found in each.source.data_ranges(pages):
                    data.set_range(found)
