"""Hashes of what was written, to find the pages that have changed since.

::

    guest runs:   page -> private copy -> written, its hash into a table                 at the device's speed
    guest waits:  page -> hash == table?  then the file has it; else it is written       at memory's speed

No dirty log is needed, which from outside a QEMU there is none. The hash is XXH3-128 with a secret seed: two contents
of a page collide with a probability of 2**-128, and a guest cannot search for a collision. We hash the copy that is
written, never RAM itself, which changes meanwhile.
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
    """A hash of each page that was written, in memory that workers share; 16 bytes per page.

    ``first`` is always the number of a page, and a multiple of 64.

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
        """1 for every page of [first, first + count) whose contents in the file are known by their hash."""
        return self._held[block].page_bits(first, count)

    def note(self, block: int, first: int, pages: Pages, bits: Bits) -> None:
        """Note contents that are about to be written.

        Args:
            block: number of the block.
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            bits: 1 for each of them that is written.
        """
        wanted = np.flatnonzero(bits)
        self._hashes[block][first + wanted] = self.hashes_of(pages, wanted)
        self._held[block].put_bits(first // WORD_PAGES, self.held(block, first, len(bits)) | bits)

    def changed(self, block: int, first: int, pages: Pages, bits: Bits) -> Bits:
        """1 for every page that differs from the file.

        Args:
            block: number of the block.
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            bits: 1 for each page to compare; ``held`` must be 1 for all of them.
        """
        wanted = np.flatnonzero(bits)
        other = (self.hashes_of(pages, wanted) != self._hashes[block][first + wanted]).any(axis=1)
        found = np.zeros(len(bits), np.uint8)
        found[wanted] = other
        return found

    def forget(self, block: int, first: int, bits: Bits) -> None:
        """Forget the hashes of pages that are about to become holes, or to be written directly from RAM.

        Args:
            block: number of the block.
            first: number of the first page.
            bits: 1 for each of these pages.
        """
        self._held[block].put_bits(first // WORD_PAGES, self.held(block, first, len(bits)) & ~bits)

    def distrust(self, data: Sequence[PageBitmap], present: Sequence[PageBitmap]) -> None:
        """Note that RAM changed while we wrote as if it stood still, so any page without a hash may be in the file.

        Args:
            data: pages that may contain data, a bitmap for each block.
            present: pages in the file; those that may be in it are added.
        """
        for held, may_hold, in_file in zip(self._held, data, present, strict=True):
            in_file.words |= may_hold.words & ~held.words
