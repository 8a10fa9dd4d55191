"""Staging: pages copied into huge pages on their way to the file.

A device fetches guest RAM, scattered over memory in pages of 4 KiB, in many small pieces, and takes a tenth longer than
for the same bytes in one piece (measured); the copy is made while it is busy with the one before. A private copy is
also what can be hashed and written without changing in between, on the way into the page cache too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parallel_fixedram.core.bitmap import Bits, runs_of_ones
from parallel_fixedram.core.latency import Bins, added
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.host.files.channel import huge_memory

SLOTS = 4
"""Windows of a worker that may be in flight or in the making: 8 MiB of memory each worker."""


class Staging:
    """Room for a few windows, each with a channel of its own, so that each can be waited for by itself.

    Args:
        channels: makes a channel to the file.
        page_size: of the largest page, bytes.
        window_pages: of the largest window.
        slots: how many windows there is room for: one is enough for a channel that is done when a call returns.
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
        """Get the room; called once in every worker."""
        memory = np.frombuffer(huge_memory(self._count * self._window_pages * self._page_size), np.uint64)
        self._slots = memory.reshape(self._count, self._window_pages, self._page_size // 8)
        self._channels = [self._make_channel() for _ in range(self._count)]

    def next_channel(self) -> Channel:
        """The channel of the next window, whose room is free again.

        Raises:
            HostError: a write that was begun from there failed.
        """
        self._turn = (self._turn + 1) % self._count
        channel = self._channels[self._turn]
        channel.settle()
        return channel

    def copy(self, pages: Pages, wanted: Bits, holes: Bits) -> Pages:
        """A window as it is now, for the channel that was taken last.

        Args:
            pages: where it comes from.
            wanted: 1 for every page that is needed.
            holes: 1 for every page that is to be zero, without being read; pages in neither hold anything.
        """
        copy: Pages = self._slots[self._turn][: len(wanted)]
        for start, count in runs_of_ones(holes).tolist():
            copy[start : start + count] = 0
        for start, count in runs_of_ones(wanted).tolist():
            copy[start : start + count] = pages[start : start + count]
        return copy

    def settle(self) -> None:
        """Return when everything that was begun is written (Channel.settle)."""
        for channel in self._channels:
            channel.settle()

    def write_bins(self) -> Bins:
        """How long writes took (Channel.write_bins)."""
        return added(channel.write_bins() for channel in self._channels)
