"""Which pages are not what the file holds of them: by hashes of what was written.

::

    guest runs:   page -> private copy -> written, its hash into a table                 at the device's speed
    guest waits:  page -> hash == table?  then the file holds it; else it is written     at memory's speed

No dirty log is needed: from outside a QEMU there is none. The hash is XXH3-128 with a seed that nobody else
knows: two contents of a page have the same one with a probability of 2**-128, and a guest cannot look for such a pair.
What is hashed is the copy that is written, never RAM itself, which changes meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, PageBitmap
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.engine.pages.ledger import shared_bitmaps, shared_words


class Hashes:
    """A hash of each page that was written, in memory that workers share; 16 bytes a page.

    ``first`` is the number of a page and a multiple of 64 everywhere.

    Args:
        blocks: in the file's order.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self._seed = secrets.randbits(64)
        self._held = shared_bitmaps(blocks)
        self._hashes: list[NDArray[np.uint64]] = [shared_words(2 * block.pages).reshape(-1, 2) for block in blocks]

    def hashes_of(self, pages: Pages, wanted: NDArray[np.int64]) -> NDArray[np.uint64]:
        """XXH3-128 of the pages with these numbers, shape (numbers, 2)."""
        digest, view, size, seed = xxhash.xxh3_128_digest, pages.data.cast("B"), pages.shape[1] * 8, self._seed
        whole = b"".join([digest(view[start : start + size], seed) for start in (wanted * size).tolist()])
        return np.frombuffer(whole, np.uint64).reshape(-1, 2)

    def held(self, block: int, first: int, count: int) -> Bits:
        """1 for every page of [first, first + count) of which the file holds a known copy."""
        return self._held[block].page_bits(first, count)

    def note(self, block: int, first: int, pages: Pages, bits: Bits) -> None:
        """These contents are about to be written.

        Args:
            block: number of the block.
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            bits: which of them.
        """
        wanted = np.flatnonzero(bits)
        self._hashes[block][first + wanted] = self.hashes_of(pages, wanted)
        self._held[block].put_bits(first // WORD_PAGES, self.held(block, first, len(bits)) | bits)

    def changed(self, block: int, first: int, pages: Pages, bits: Bits) -> Bits:
        """1 for every page, of those whose bit is 1, that is not what the file holds.

        Args:
            block: number of the block.
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            bits: which of them to look at; the file holds something of each.
        """
        wanted = np.flatnonzero(bits)
        other = (self.hashes_of(pages, wanted) != self._hashes[block][first + wanted]).any(axis=1)
        found = np.zeros(len(bits), np.uint8)
        found[wanted] = other
        return found

    def forget(self, block: int, first: int, bits: Bits) -> None:
        """These pages are made holes, or will be written from RAM itself: the hash is no longer that of the file.

        Args:
            block: number of the block.
            first: number of the first page.
            bits: which of the pages from there on.
        """
        self._held[block].put_bits(first // WORD_PAGES, self.held(block, first, len(bits)) & ~bits)

    def distrust(self, data: Sequence[PageBitmap], present: Sequence[PageBitmap]) -> None:
        """Pages changed while they were written as if RAM stood still: any page that is not held may be in the file.

        Args:
            data: pages that may hold something, one bitmap a block.
            present: which pages are in the file; all those of which that is not certain are added.
        """
        for held, may_hold, in_file in zip(self._held, data, present, strict=True):
            in_file.words |= may_hold.words & ~held.words
