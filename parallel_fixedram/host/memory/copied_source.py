"""Guest RAM that is copied before it is examined: for hugetlbfs, and as a base class for other sources that copy.

hugetlbfs reports a file's holes as data. ``pread`` gives zeros for a hole without allocating anything, which reading
through a mapping would.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import numpy as np

from parallel_fixedram.core.bitmap import Bits, PageBitmap, runs_of_ones
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Pages, PageSource
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.anonymous import anonymous_memory


class CopyingSource(ABC):
    """Base of sources that copy: a private, page-aligned buffer, and a loop over short reads.

    Args:
        page_size: target page size in bytes.
    """

    views_stay_valid = False

    def __init__(self, *, page_size: int) -> None:
        self._page_size = page_size
        self._buffer: Pages = np.empty((0, page_size // 8), np.uint64)

    @abstractmethod
    def _read(self, position: int, into: memoryview) -> int:
        """Copy bytes of the block from ``position`` on; returns how many, at least one.

        Raises:
            HostError: the block cannot be read there.
        """

    def pages(self, first: int, count: int, wanted: Bits | None = None) -> Pages:
        """A copy of the pages, overwritten by the next call (PageSource.pages)."""
        if len(self._buffer) < count:
            memory = anonymous_memory(count * self._page_size)
            self._buffer = np.frombuffer(memory, np.uint64).reshape(count, -1)
        result = self._buffer[:count]
        for start, length in [(0, count)] if wanted is None else runs_of_ones(wanted).tolist():
            target = result[start : start + length].data.cast("B")
            position = (first + start) * self._page_size
            while target:
                got = self._read(position, target)
                target, position = target[got:], position + got
        result.flags.writeable = False
        return result

    def close(self) -> None:
        """Drop the buffer (PageSource.close)."""
        self._buffer = np.empty((0, self._page_size // 8), np.uint64)


class CopiedSource(CopyingSource):
    """Pages of a file on huge pages, read with ``preadv``.

    Args:
        fd: descriptor of the file, readable; duplicated.
        offset: where the block starts in the file, bytes.
    """

    tells_holes = False

    def __init__(self, fd: int, *, offset: int = 0) -> None:
        super().__init__(page_size=TARGET_PAGE_SIZE)
        self._fd = os.dup(fd)
        self._offset = offset

    def open(self) -> None:
        """Nothing to prepare: ``preadv`` needs no mapping (PageSource.open)."""

    def _read(self, position: int, into: memoryview) -> int:
        try:
            got = os.preadv(self._fd, [into], self._offset + position)
        except OSError as error:
            raise HostError.from_os("cannot read guest RAM", error) from error
        if got == 0:
            raise HostError("guest RAM became shorter while it was read")
        return got

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """All of it, since holes cannot be told (PageSource.data_ranges)."""
        return [within] if within.count else []

    def newly_touched(self, data: PageBitmap) -> list[PageRange]:
        """Everything that ``data`` leaves out (PageSource.newly_touched)."""
        return newly_touched_by_asking(self, data)

    def close(self) -> None:
        """Drop buffer and descriptor (PageSource.close)."""
        super().close()
        if self._fd >= 0:
            linux.close(self._fd)
            self._fd = -1


def newly_touched_by_asking(source: PageSource, data: PageBitmap) -> list[PageRange]:
    """PageSource.newly_touched by asking for the ``data_ranges`` of every gap: exact, and quick if gaps are few."""
    if data.count() == data.pages:
        return []
    return [found for gap in data.gaps() for found in source.data_ranges(gap)]
