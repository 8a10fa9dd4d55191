"""Ring: copies of groups on their way from the handler, which never waits for a file, to the spill writer.

One process puts, one takes. A slot belongs to the one that puts until ``head`` has passed it, and then to the other one
until ``tail`` has.
"""

from __future__ import annotations

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.host.files.channel import anonymous_memory


class Ring:
    """Room for ``slots`` groups in shared memory, of which only what was ever used is allocated.

    Args:
        slots: at least 1.
        page_size: of the largest page, bytes.
    """

    def __init__(self, slots: int, page_size: int) -> None:
        self.slots = slots
        memory = anonymous_memory(slots * WORD_PAGES * page_size, shared=True)
        self._pages: Pages = np.frombuffer(memory, np.uint64).reshape(slots, WORD_PAGES, page_size // 8)
        self._groups = shared_words(slots).view(np.int64)
        self._head, self._tail = shared_words(1), shared_words(1)

    def __len__(self) -> int:
        """Groups that were put and not yet taken."""
        return int(self._head[0]) - int(self._tail[0])

    @property
    def taken(self) -> int:
        """Groups that were taken so far."""
        return int(self._tail[0])

    def is_full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self) >= self.slots

    def room(self) -> Pages:
        """The slot for the next group, shape (64, page_size / 8); what it holds is what it held before."""
        slot: Pages = self._pages[int(self._head[0]) % self.slots]
        return slot

    def put(self, group: int) -> None:
        """What is in ``room`` is this group."""
        head = int(self._head[0])
        self._groups[head % self.slots] = group
        self._head[0] = head + 1

    def peek(self, place: int) -> tuple[int, Pages]:
        """The group that is ``place`` places after the next one to be taken, and its pages."""
        slot = (int(self._tail[0]) + place) % self.slots
        return int(self._groups[slot]), self._pages[slot]

    def take(self, count: int) -> None:
        """These are done with: their slots are free."""
        self._tail[0] = int(self._tail[0]) + count
