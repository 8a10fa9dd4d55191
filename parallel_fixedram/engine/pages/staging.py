"""Staging: huge pages into which pages are copied on their way to the file.

Guest RAM is scattered over memory in pages of 4 KiB, which a device fetches in many small pieces; that takes a tenth
longer than the same bytes in one piece (measured). The copy is made while the device is busy with the previous one.
Besides, a private copy can be hashed and written without changing in between, also on its way into the page cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parallel_fixedram.core.bitmap import Bits, runs_of_ones
from parallel_fixedram.core.latency import Bins, added
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.host.memory.anonymous import huge_memory

SLOTS = 4
"""Windows of a worker that may be in flight or being filled: 8 MiB of memory per worker."""


class Staging:
    """Room for a few windows, each with a channel of its own, so that each can be waited for by itself.

    Args:
        channels: makes a channel to the file.
        page_size: of the largest page, bytes.
        window_pages: of the largest window.
        slots: number of windows; one is enough for a channel whose writes are done when a call returns.
    """

    def __init__(
        self, channels: Callable[[], Channel], page_size: int, *, window_pages: int, slots: int = SLOTS
    ) -> None:
        self._make_channel = channels
        self._page_size = page_size
        self._window_pages = window_pages
        self._count = slots
        self._turn = 0

    def open(self) -> None:
        """Allocate the memory; called once in every worker."""
        memory = np.frombuffer(huge_memory(self._count * self._window_pages * self._page_size), np.uint64)
        self._slots = memory.reshape(self._count, self._window_pages, self._page_size // 8)
        self._channels = [self._make_channel() for _ in range(self._count)]

    def next_channel(self) -> Channel:
        """The channel for the next window; waits until its memory is free again.

        Raises:
            HostError: an earlier write from that memory failed.
        """
        self._turn = (self._turn + 1) % self._count
        channel = self._channels[self._turn]
        channel.settle()
        return channel

    def copy(self, pages: Pages, wanted: Bits, holes: Bits) -> Pages:
        """Copy a window, to be written by the channel that ``next_channel`` returned last.

        Args:
            pages: the window, shape (pages, page_size / 8).
            wanted: 1 for every page to copy.
            holes: 1 for every page to zero without reading it. The contents of all other pages are undefined.
        """
        copy: Pages = self._slots[self._turn][: len(wanted)]
        for start, count in runs_of_ones(holes).tolist():
            copy[start : start + count] = 0
        for start, count in runs_of_ones(wanted).tolist():
            copy[start : start + count] = pages[start : start + count]
        return copy

    def settle(self) -> None:
        """Wait until everything is written (Channel.settle)."""
        for channel in self._channels:
            channel.settle()

    def write_bins(self) -> Bins:
        """How long writes took (Channel.write_bins)."""
        return added(channel.write_bins() for channel in self._channels)
