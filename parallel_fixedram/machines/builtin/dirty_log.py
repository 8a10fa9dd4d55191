"""The built-in guest's dirty log: one byte per page, in memory that the guest and its saver share.

::

    guest:  write page     -> fence -> set byte          (mark)
    saver:  see and clear bytes -> fence -> copy pages   (sync, then whatever reads the pages)

A byte and not a bit: setting a bit is a read and a write, which would undo what the other side does to the same word in
between. A byte is stored in one piece.

Why no update is lost: take any write to a page. Its byte is set after it. If that is before the byte is cleared, then
the write, too, came before the clearing, and the copy made after the clearing has it. If it is after the last clearing,
the byte is still set and the next ``sync`` finds it. For this the write must become visible before the byte, and the
clearing before the page is read. x86 keeps stores in order (except streaming stores, which a long memcpy may use), but
lets a load pass an earlier store; hence a fence on either side. A page that is copied while it is being written is
torn, but its byte is set afterwards, so it is copied again. In the last round the guest is paused, and the answer to
the pause, through a socket, orders everything before it.

There must be only one saver: of two that call ``sync``, each would see a part.
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
        OSError: there is not enough memory.
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
            seen = chunk.copy()  # flatnonzero makes two passes, and fails if a byte changes in between
            chunk[np.flatnonzero(seen)] = 0  # only these: others may have been set meanwhile
            fresh.put_bits(first // WORD_PAGES, seen)
        self._fence()
        return bitmap.add(fresh)

    def close(self) -> None:
        """Release this process's mapping; may be called more than once."""
        self._bytes = None

    def _fence(self) -> None:
        # a lock is taken with a locked instruction, which is a full barrier on x86
        with self._barrier:
            pass
