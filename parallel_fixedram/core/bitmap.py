"""PageBitmap: one bit a page, in 64-bit words, the way QEMU keeps and stores it.

Page ``i`` is bit ``i % 64`` of little-endian word ``i // 64``, which is byte ``i // 8``, bit ``i % 8`` of the file's
bitmap (QEMU: an ``unsigned long`` array of a 64-bit little-endian host). Bits at and after ``pages`` in the last word
are always 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.ramblock import PageRange

WORD_PAGES = 64
"""Pages in one bitmap word: the unit in which work is divided, so that no two workers ever share a word."""

WORD_BYTES = 8

Words = NDArray[np.uint64]
Bits = NDArray[np.uint8]
"""One element a page, 1 or 0, shape (pages,)."""
Runs = NDArray[np.int64]
"""First page and length of each run, ascending and disjoint, shape (runs, 2)."""

_ALL_ONES = (1 << WORD_PAGES) - 1
_CHUNK_WORDS = 1 << 16
_MANY_RANGES = 64
_LITTLE_ENDIAN_WORD = np.dtype("<u8")


def words_for(pages: int) -> int:
    """Number of words that ``pages`` bits need."""
    return -(-pages // WORD_PAGES)


def bitmap_bytes(pages: int) -> int:
    """Bytes of a bitmap of ``pages`` bits in the file."""
    return words_for(pages) * WORD_BYTES


def tail_mask(pages: int) -> int:
    """The bits of the last word that stand for pages."""
    used = pages % WORD_PAGES
    return (1 << used) - 1 if used else _ALL_ONES


def runs_of_ones(bits: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Maximal runs of non-zero elements, shape (runs, 2): first index and length, ascending."""
    edges = np.empty(len(bits) + 2, np.int8)
    edges[0] = edges[-1] = 0  # so that a run at either end has two turns as well, and turns come in pairs
    np.not_equal(bits, 0, out=edges[1:-1].view(np.bool_))
    turns = np.flatnonzero(edges[1:] != edges[:-1])
    runs = turns.reshape(-1, 2)
    runs[:, 1] -= runs[:, 0]
    return runs


class PageBitmap:
    """A bitmap of ``pages`` pages over ``words``, which may lie in shared memory.

    Args:
        pages: number of pages.
        words: uint64 array of exactly ``words_for(pages)`` elements to use in place; a zeroed one of its own if None.
    """

    __slots__ = ("pages", "words")

    def __init__(self, pages: int, words: Words | None = None) -> None:
        self.pages = pages
        self.words: Words = np.zeros(words_for(pages), np.uint64) if words is None else words
        if self.words.shape != (words_for(pages),) or self.words.dtype != np.uint64:
            raise ValueError(
                f"{pages} pages need {words_for(pages)} uint64 words, got {self.words.shape} {self.words.dtype}"
            )

    @classmethod
    def from_bytes(cls, data: bytes, pages: int) -> PageBitmap:
        """The bitmap stored as ``data``; bits after the last page are dropped, as QEMU does."""
        bitmap = cls(pages, np.frombuffer(data, _LITTLE_ENDIAN_WORD).astype(np.uint64))
        bitmap._trim()
        return bitmap

    def to_bytes(self) -> bytes:
        """The bitmap as it stands in a file."""
        return self.words.astype(_LITTLE_ENDIAN_WORD, copy=False).tobytes()

    def _trim(self) -> None:
        if len(self.words):
            self.words[-1] &= np.uint64(tail_mask(self.pages))

    def set_all(self) -> None:
        """Set the bit of every page."""
        self.words.fill(_ALL_ONES)
        self._trim()

    def set_range(self, pages: PageRange) -> None:
        """Set the bits of ``pages``, which must lie inside the bitmap."""
        if pages.count <= 0:
            return
        if pages.first < 0 or pages.end > self.pages:
            raise ValueError(f"{pages} lies outside a bitmap of {self.pages} pages")
        first, last = pages.first // WORD_PAGES, (pages.end - 1) // WORD_PAGES
        head = (_ALL_ONES << (pages.first % WORD_PAGES)) & _ALL_ONES
        tail = tail_mask(pages.end)
        if first == last:
            self.words[first] |= np.uint64(head & tail)
            return
        self.words[first] |= np.uint64(head)
        self.words[first + 1 : last] = np.uint64(_ALL_ONES)
        self.words[last] |= np.uint64(tail)

    def set_ranges(self, ranges: Sequence[PageRange]) -> None:
        """Set the bits of many ranges, which are disjoint and must lie inside the bitmap."""
        if len(ranges) < _MANY_RANGES:
            for each in ranges:
                self.set_range(each)
            return
        self.set_runs(np.array([(each.first, each.count) for each in ranges], np.int64))

    def set_runs(self, runs: Runs) -> None:
        """Set the bits of runs, which are disjoint and must lie inside the bitmap."""
        if not len(runs):
            return
        edges = np.stack((runs[:, 0], runs[:, 0] + runs[:, 1]), axis=1)
        if edges.min() < 0 or edges.max() > self.pages:
            raise ValueError(f"pages {edges.min()} to {edges.max()} lie outside a bitmap of {self.pages} pages")
        for start in range(0, self.pages, _CHUNK_WORDS * WORD_PAGES):  # a byte a page, but never for all of a large RAM
            count = min(_CHUNK_WORDS * WORD_PAGES, self.pages - start)
            inside = np.clip(edges - start, 0, count)
            inside = inside[inside[:, 0] < inside[:, 1]]
            if len(inside):
                steps = np.zeros(count + 1, np.int8)
                # +1 where a run begins, -1 after its end: the running sum is 1 inside
                np.add.at(steps, inside[:, 0], 1)
                np.add.at(steps, inside[:, 1], -1)
                bits = np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8)
                first, words = start // WORD_PAGES, words_for(count)
                self.put_bits(first, bits | self.bits(first, words))

    def set_pages(self, indices: NDArray[np.int64]) -> None:
        """Set the bits of the given pages, in any order; all of them must lie inside the bitmap."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.pages:
            raise ValueError(f"pages {indices.min()} to {indices.max()} lie outside a bitmap of {self.pages} pages")
        shifts = (indices % WORD_PAGES).astype(np.uint64)
        # .at, because several pages may be in one word: words[...] |= would keep one of them
        np.bitwise_or.at(self.words, indices // WORD_PAGES, np.left_shift(np.uint64(1), shifts))

    def test(self, page: int) -> bool:
        """Whether the bit of ``page`` is set."""
        return bool((int(self.words[page // WORD_PAGES]) >> (page % WORD_PAGES)) & 1)

    def count(self) -> int:
        """Number of bits set."""
        return int(np.bitwise_count(self.words).sum(dtype=np.int64))

    def add(self, other: PageBitmap) -> int:
        """Set every bit that is set in ``other``; returns how many went from 0 to 1."""
        before = self.count()
        self.words |= other.words
        return self.count() - before

    def bits(self, first_word: int, words: int) -> NDArray[np.uint8]:
        """The bits of ``words`` words as an array of 0 and 1, one element a page, cut at the last page."""
        chunk = self.words[first_word : first_word + words].astype(_LITTLE_ENDIAN_WORD, copy=False)
        count = min(words * WORD_PAGES, self.pages - first_word * WORD_PAGES)
        return np.unpackbits(chunk.view(np.uint8), count=max(count, 0), bitorder="little")

    def page_bits(self, first: int, count: int) -> NDArray[np.uint8]:
        """The bits of ``count`` pages from ``first`` on, a multiple of 64, as an array of 0 and 1."""
        return self.bits(first // WORD_PAGES, words_for(count))[:count]

    def put_bits(self, first_word: int, bits: NDArray[np.uint8]) -> None:
        """The reverse of ``bits``: replace whole words, starting at ``first_word``."""
        packed = np.zeros(words_for(len(bits)) * WORD_BYTES, np.uint8)
        packed[: -(-len(bits) // 8)] = np.packbits(bits, bitorder="little")
        self.words[first_word : first_word + words_for(len(bits))] = packed.view(_LITTLE_ENDIAN_WORD)

    def gaps(self) -> list[PageRange]:
        """Maximal runs of clear bits, ascending."""
        inverse = PageBitmap(self.pages, ~self.words)
        # ~ has set the bits after the last page as well
        inverse._trim()
        return inverse.ranges()

    def ranges(self) -> list[PageRange]:
        """Maximal runs of set bits, ascending."""
        return [PageRange(first, count) for first, count in self.runs().tolist()]

    def runs(self) -> Runs:
        """Maximal runs of set bits, ascending, as an array of firsts and lengths."""
        words, top = self.words, np.uint64(WORD_PAGES - 1)
        # a run begins at a set bit whose neighbour before is clear; that of a word's first bit is in the word before
        none = np.zeros(1, np.uint64)
        before = np.concatenate((none, words[:-1] >> top))[: len(words)]
        after = np.concatenate((words[1:] << top, none))[: len(words)]
        firsts = _set_bits(words & ~((words << np.uint64(1)) | before))
        lasts = _set_bits(words & ~((words >> np.uint64(1)) | after))
        return np.stack((firsts, lasts + 1 - firsts), axis=1)


def _set_bits(words: Words) -> NDArray[np.int64]:
    """Numbers of the set bits, ascending; takes time only for words that have some."""
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    used = np.flatnonzero(words)
    for start in range(0, len(used), _CHUNK_WORDS):
        chunk = used[start : start + _CHUNK_WORDS]
        octets = words[chunk].astype(_LITTLE_ENDIAN_WORD, copy=False).view(np.uint8).reshape(-1, WORD_BYTES)
        rows, bits = np.nonzero(np.unpackbits(octets, axis=1, bitorder="little"))
        found.append(chunk[rows] * WORD_PAGES + bits)
    return np.concatenate(found)
