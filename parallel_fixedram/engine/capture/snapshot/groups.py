"""Groups: 64 pages of one block, that is, one bitmap word; the granularity at which RAM is protected, marked and
copied.

Groups are numbered through all blocks, in the file's order. On huge pages, all groups of a huge page can only be
protected or released together: they form a unit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, runs_of_ones, words_for
from parallel_fixedram.core.ramblock import RAMBlock

Marked = NDArray[np.uint8]
"""Nonzero for every marked group, shape (groups,)."""

_CHUNK = 1 << 15
"""Groups that are examined at a time: 8 GiB, tens of microseconds. A multiple of the groups in any huge page."""


class Groups:
    """Where the groups of some blocks are.

    Args:
        blocks: in the file's order.
        addresses: where each starts in the guest's process, a multiple of its ``host_page_size``; None for a block that
            is not protected.

    Attributes:
        count: number of groups.
        firsts: number of the first group of each block.
    """

    def __init__(self, blocks: Sequence[RAMBlock], addresses: Sequence[int | None]) -> None:
        self._blocks = list(blocks)
        self._addresses = list(addresses)
        counts = [words_for(block.pages) for block in blocks]
        self.firsts = [0, *accumulate(counts)][: len(counts)]
        self.count = sum(counts)
        placed = [(address, block) for block, address in enumerate(addresses) if address is not None]
        self._placed = sorted(placed)

    @property
    def protected(self) -> list[tuple[int, int]]:
        """Address and length of every protected block."""
        return [(address, self._blocks[block].used_length) for address, block in self._placed]

    def place(self, group: int) -> tuple[int, int]:
        """Index of a group's block, and of the group's word in the block's bitmaps."""
        block = bisect_right(self.firsts, group) - 1
        return block, group - self.firsts[block]

    def pages(self, group: int) -> int:
        """Number of pages in a group: 64, except perhaps in the last one of a block."""
        block, word = self.place(group)
        return min(WORD_PAGES, self._blocks[block].pages - word * WORD_PAGES)

    def within(self, start: int, end: int) -> list[range]:
        """The units that overlap the addresses [start, end), as one range of groups for each block."""
        found = []
        for address, number in self._placed:
            block = self._blocks[number]
            first, last = max(start, address), min(end, address + block.used_length)
            if first < last:
                unit = self._unit(number)
                step = unit * WORD_PAGES * block.page_size
                begin, stop = (first - address) // step * unit, -(-(last - address) // step) * unit
                found.append(range(self.firsts[number] + begin, min(self.firsts[number] + stop, self._end(number))))
        return found

    def unit(self, address: int) -> range:
        """The groups that are protected together with this address; empty if it is in no block."""
        found = self.within(address, address + 1)
        return found[0] if found else range(0)

    def longer(self, groups: range, more: int) -> range:
        """Some groups, and up to ``more`` behind them: whole units of the same block."""
        number, _ = self.place(groups.start)
        unit = self._unit(number)
        return range(groups.start, min(groups.stop + more // unit * unit, self._end(number)))

    def around(self, groups: range, length: int) -> range:
        """Some groups of one block, and those in the same aligned ``length`` bytes of it, a multiple of the unit."""
        number, word = self.place(groups.start)
        many, first = length // (WORD_PAGES * self._blocks[number].page_size), self.firsts[number]
        start, stop = word // many * many, -(-(word + len(groups)) // many) * many
        return range(first + start, min(first + stop, self._end(number)))

    def span(self, groups: range) -> tuple[int, int]:
        """Address and length of some groups, all of one protected block."""
        number, word = self.place(groups.start)
        block, address = self._blocks[number], self._addresses[number]
        assert address is not None, "the block is not protected"
        size = WORD_PAGES * block.page_size
        offset = word * size
        return address + offset, min(len(groups) * size, block.used_length - offset)

    def pieces(
        self, length: int | Callable[[], int], marked: Callable[[slice], Marked] | None = None
    ) -> Iterator[range]:
        """Groups of protected blocks in contiguous pieces, each of one block and of whole units, ascending.

        Args:
            length: of the longest piece, bytes, or a function that is called for each piece; a longer unit is a piece
                of its own.
            marked: called for each part in turn, says which groups to include; a unit only if all its groups are. None
                for all groups.
        """
        for _, number in self._placed:
            unit, size = self._unit(number), WORD_PAGES * self._blocks[number].page_size
            for start in range(self.firsts[number], self._end(number), _CHUNK):
                chunk = slice(start, min(start + _CHUNK, self._end(number)))
                for first, count in self._runs(chunk, unit, marked):
                    piece, stop = first, first + count
                    while piece < stop:
                        now = length if isinstance(length, int) else length()
                        piece, begin = min(piece + max(now // size // unit, 1) * unit, stop), piece
                        yield range(begin, piece)

    @staticmethod
    def _runs(chunk: slice, unit: int, marked: Callable[[slice], Marked] | None) -> Iterator[tuple[int, int]]:
        if marked is None:
            yield chunk.start, chunk.stop - chunk.start
            return
        found = marked(chunk)
        if unit > 1:
            found = np.min(found.reshape(-1, unit), axis=1)
        for first, count in (runs_of_ones(found) * unit).tolist():
            yield chunk.start + first, count

    def _unit(self, number: int) -> int:
        block = self._blocks[number]
        return max(block.host_page_size // (WORD_PAGES * block.page_size), 1)

    def _end(self, number: int) -> int:
        return self.firsts[number] + words_for(self._blocks[number].pages)
