"""The bitmaps that coordinator and workers share, in anonymous shared memory inherited by every fork.

A worker writes only ``file``, and only the words of its shard; the coordinator writes only words that are in no shard
in flight. So nothing needs a lock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_BYTES, PageBitmap, words_for
from parallel_fixedram.core.protocols import DirtySource, GuestBlock
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host.files.channel import anonymous_memory

_KINDS = 3


def shared_words(count: int) -> NDArray[np.uint64]:
    """Zeroed words that this process and its later forks share, shape (count,); HostError if there is no memory."""
    return np.frombuffer(anonymous_memory(max(count, 1) * WORD_BYTES, shared=True), np.uint64, count)


class SharedBitmaps:
    """Three bitmaps for every block, all clear.

    Attributes:
        dirty: pages to write in this round.
        data: pages that may be read: outside of them guest RAM was never touched and is zero.
        file: pages present in the file.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        words = [words_for(block.pages) for block in blocks]
        memory = shared_words(sum(words) * _KINDS)
        kinds: list[list[PageBitmap]] = []
        position = 0
        for _ in range(_KINDS):
            bitmaps = []
            for block, count in zip(blocks, words, strict=True):
                bitmaps.append(PageBitmap(block.pages, memory[position : position + count]))
                position += count
            kinds.append(bitmaps)
        self.dirty, self.data, self.file = kinds


def map_data(guest_blocks: Sequence[GuestBlock], data: Sequence[PageBitmap]) -> None:
    """Set the bits of all pages that may hold something, one bitmap a block."""
    for each, bitmap in zip(guest_blocks, data, strict=True):
        whole = PageRange(0, each.block.pages)
        bitmap.set_ranges([whole] if each.keeps_zero_pages else each.source.data_ranges(whole))


def map_grown(guest_blocks: Sequence[GuestBlock], data: Sequence[PageBitmap]) -> None:
    """Add the pages that were touched since the data maps were made."""
    for each, bitmap in zip(guest_blocks, data, strict=True):
        bitmap.set_ranges(each.source.grown(bitmap))


def sync_dirty(source: DirtySource | None, guest_blocks: Sequence[GuestBlock], bitmaps: SharedBitmaps) -> None:
    """Add what was written since the last time; the data maps grow by what of it is no hole any more."""
    if source is None:
        return
    touched = [PageBitmap(bitmap.pages) for bitmap in bitmaps.dirty]
    source.sync(touched)
    for each, new, dirty, data in zip(guest_blocks, touched, bitmaps.dirty, bitmaps.data, strict=True):
        dirty.words |= new.words
        new.words &= ~data.words
        for pages in new.ranges() if new.words.any() else ():  # a coarse log also names pages never touched
            for found in each.source.data_ranges(pages):
                data.set_range(found)
