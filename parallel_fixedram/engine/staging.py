"""Staging: pages copied into huge pages on their way past the page cache.

A device fetches guest RAM, scattered over memory in pages of 4 KiB, in many small pieces, and takes a tenth longer than
for the same bytes in one piece (measured); the copy is made while it is busy with the one before. A private copy is
also what can be hashed and written without changing in between.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parallel_fixedram.core.bitmap import Bits, runs_of_ones
from parallel_fixedram.core.choice import WINDOW_PAGES_DIRECT
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.host.channel import huge_memory

SLOTS = 4
"""Windows of a worker that may be in flight or in the making: 8 MiB of memory each worker."""


class Staging:
    """Room for a few windows, each with a channel of its own, so that each can be waited for by itself.

    Args:
        channels: makes a channel to the file.
        page_size: of the largest page, bytes.
    """

    def __init__(self, channels: Callable[[], Channel], page_size: int) -> None:
        self._make_channel = channels
        self._page_size = page_size
        self._turn = 0

    def open(self) -> None:
        """Get the room; called once in every worker."""
        memory = np.frombuffer(huge_memory(SLOTS * WINDOW_PAGES_DIRECT * self._page_size), np.uint64)
        self._slots = memory.reshape(SLOTS, WINDOW_PAGES_DIRECT, self._page_size // 8)
        self._channels = [self._make_channel() for _ in range(SLOTS)]

    def next_channel(self) -> Channel:
        """The channel of the next window, whose room is free again.

        Raises:
            HostError: a write that was begun from there failed.
        """
        self._turn = (self._turn + 1) % SLOTS
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
