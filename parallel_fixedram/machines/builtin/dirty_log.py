"""The built-in guest's dirty log: one byte a page, in memory that the guest and its saver share.

::

    guest:  write page     -> fence -> set byte          (mark)
    saver:  see and clear bytes -> fence -> copy pages   (sync, then whatever reads the pages)

A byte, not a bit, because setting a bit is a read and a write, and what the other side does to the same word between
the two would be undone; a byte is stored in one piece.

Why no update is lost: take any write to a page. The byte is set after it. Either that happens before a clearing of the
byte, then the write, too, came before the clearing and is seen by the copy made after it; or it happens after the last
clearing, then the byte is still set and the next ``sync`` finds it. That needs the write to become visible before the
byte, and the clearing before the page is read: x86 keeps stores in order (but for streaming stores, which a long memcpy
may use) and lets a load pass an earlier store, hence a fence on either side. A page copied while it is being written is
torn, but then its byte is set afterwards and it is copied again; the last round happens with the guest paused, and the
pause's answer through a socket orders everything before it.

There is one saver: two that call ``sync`` would each see a part.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, PageBitmap

_CHUNK_PAGES = 1 << 20


class DirtyLog:
    """Shared between this process and those it forks; a DirtySource for the one block of the guest.

    Costs 1/4096 of the RAM.

    Args:
        pages: number of pages.

    Raises:
        OSError: not enough memory.
    """

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(mmap.mmap(-1, pages), np.uint8)
        self._barrier = threading.Lock()

    def mark(self, pages: NDArray[np.int64]) -> None:
        """Log pages that have just been written; called by the guest only."""
        assert self._bytes is not None
        self._fence()
        self._bytes[pages] = 1

    def sync(self, into: Sequence[PageBitmap]) -> int:
        """Fetch and forget (DirtySource.sync); ``into`` is the one bitmap of the guest's block."""
        (bitmap,) = into
        assert self._bytes is not None
        fresh = PageBitmap(self._pages)
        for first in range(0, self._pages, _CHUNK_PAGES):
            chunk = self._bytes[first : first + _CHUNK_PAGES]
            seen = chunk.copy()  # flatnonzero looks twice and fails when it sees a byte change in between
            chunk[np.flatnonzero(seen)] = 0  # not all: others may have been set meanwhile
            fresh.put_bits(first // WORD_PAGES, seen)
        self._fence()
        return bitmap.add(fresh)

    def close(self) -> None:
        """Give the memory back, as far as this process is concerned; more than once does no harm."""
        self._bytes = None

    def _fence(self) -> None:
        # Locked instructions, with which a lock is taken and released, are full barriers on x86.
        with self._barrier:
            pass
