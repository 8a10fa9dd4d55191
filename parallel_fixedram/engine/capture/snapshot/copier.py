"""GroupCopier: copies the contents of a group at T into a slot of the ring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, runs_of_ones
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.engine.capture.snapshot.marks import Marks
from parallel_fixedram.engine.capture.snapshot.places import Origin


class GroupCopier:
    """Reads groups from guest RAM.

    Args:
        origin: where they are; its data may lack pages that were first touched after everything was protected.
        marks: tell which groups have such pages.
    """

    def __init__(self, origin: Origin, marks: Marks) -> None:
        self._groups = origin.groups
        self._sources = origin.sources
        self._data = origin.data
        self._marks = marks

    def open(self) -> None:
        """Prepare this process for ``copy`` (PageSource.open)."""
        for source in self._sources:
            source.open()

    def rehearse(self, slot: Pages) -> None:
        """Copy a group of each block in vain, because the first time takes longest."""
        for data, first in zip(self._data, self._groups.firsts, strict=True):
            for word in np.flatnonzero(data.words)[:1].tolist():
                self.copy(first + word, slot)

    def holds(self, group: int) -> bool:
        """Whether a group may have contained data at T; otherwise it was zero."""
        if self._marks.noted[group]:
            return True
        block, word = self._groups.place(group)
        return bool(self._data[block].words[word])

    def held(self, part: slice) -> NDArray[np.uint8]:
        """``holds`` as 1 or 0 for each group of a slice, all of one block."""
        block, word = self._groups.place(part.start)
        words = self._data[block].words[word : word + part.stop - part.start]
        found: NDArray[np.uint8] = ((words != 0) | (self._marks.noted[part] != 0)).view(np.uint8)
        return found

    def copy(self, group: int, slot: Pages) -> None:
        """Copy a group into ``slot``, shape (64, page_size / 8). Pages that were never touched are zeroed, not read.

        Raises:
            HostError: it cannot be read.
        """
        block, word = self._groups.place(group)
        count = self._groups.pages(group)
        bits = np.ones(count, np.uint8) if self._marks.noted[group] else self._data[block].bits(word, 1)
        pages = self._sources[block].pages(word * WORD_PAGES, count, bits)
        for start, length in runs_of_ones(bits).tolist():
            slot[start : start + length] = pages[start : start + length]
        for start, length in runs_of_ones(bits == 0).tolist():
            slot[start : start + length] = 0
