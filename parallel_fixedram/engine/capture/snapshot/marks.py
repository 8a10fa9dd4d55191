"""Marks: what the processes of a snapshot tell each other about its groups, in shared memory.

===========  =============  ==========================================================================================
a byte       written by     1 when
===========  =============  ==========================================================================================
``noted``    handler        before T: the group was written after it was protected, and is protected again at T
``copied``   handler        after T: a copy is in the ring, or in the file
``written``  its worker     it is in the file, and its bits and digests are in their tables
===========  =============  ==========================================================================================

Every byte and every word has one writer, so nothing needs a lock. x86-64 guarantees that stores become visible, and
that loads happen, in program order; another architecture would need barriers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap, words_for
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.host.processes.watchdog import WatchdogVerdict

_LINE = 8
"""Words in a cache line: each control word has its own line, so that writing one does not slow down readers of
others."""


class Phase(IntEnum):
    """What the handler is doing."""

    WAITING = 0
    """Nothing is protected."""
    PROTECTING = 1
    PROTECTED = 2
    """Everything is protected; a write is noted and passes."""
    CAPTURING = 3
    """From T on: what is about to be written is copied first."""
    RELEASING = 4
    """Memory is being released, a piece at a time."""
    ENDED = 5


class Void(IntEnum):
    """Why a snapshot is void."""

    NOT = 0
    DISCARDED = 1
    REMAPPED = 2
    UNMAPPED = 3
    RING_FULL = 4
    SPILL_ENDED = 5
    FAILED = 6
    ABANDONED = 7


_REASONS = {
    Void.DISCARDED: "memory of the guest was discarded while it was captured (a balloon, or free page reporting)",
    Void.REMAPPED: "memory of the guest was moved while it was captured",
    Void.UNMAPPED: "memory of the guest was unmapped while it was captured",
    Void.RING_FULL: "the file is written more slowly than the guest writes its memory",
    Void.SPILL_ENDED: "the process that writes spilled pages has ended",
    Void.FAILED: "the process that serves the guest's page faults failed",
    Void.ABANDONED: "it was abandoned",
}


_VERDICTS = {
    WatchdogVerdict.ENDED: "the process that serves the guest's page faults has ended",
    WatchdogVerdict.KILLED: "the process that serves the guest's page faults did not answer in time and was killed",
}


class Marks:
    """The marks of all groups, the bits of spilled pages, and the control words; all are 0 at first.

    Args:
        groups: number of groups.
        blocks: in the file's order.

    Attributes:
        noted: see above; shape (groups,), like the next two.
        copied: see above.
        written: see above.
        spilled: pages that the spill writer has written, a bitmap for each block; set by the spill writer only.
        beat: when the handler last reported, CLOCK_MONOTONIC in nanoseconds; shape (1,), like the next three.
        phase: a Phase, set by the handler.
        void: a Void, set by the handler.
        verdict: a WatchdogVerdict, set by the watchdog.
    """

    def __init__(self, groups: int, blocks: Sequence[RAMBlock]) -> None:
        marks = np.frombuffer(anonymous_memory(3 * max(groups, 1), shared=True), np.uint8)
        self.noted, self.copied, self.written = (marks[kind * groups : (kind + 1) * groups] for kind in range(3))
        self.spilled = [PageBitmap(block.pages, shared_words(words_for(block.pages))) for block in blocks]
        control = shared_words(4 * _LINE)
        self.beat, self.phase, self.void, self.verdict = (control[at : at + 1] for at in range(0, 4 * _LINE, _LINE))

    def is_captured(self, group: int) -> bool:
        """Whether the contents at T are safe, so that the group may be written."""
        return bool(self.copied[group] or self.written[group])

    def why_void(self) -> str | None:
        """Why the snapshot is void, as a sentence; None if it is not."""
        if void := int(self.void[0]):
            return _REASONS[Void(void)]
        if (verdict := int(self.verdict[0])) and self.phase[0] < Phase.RELEASING:  # later all is captured
            return _VERDICTS[WatchdogVerdict(verdict)]
        return None

    def check(self) -> None:
        """Raise HostError if the snapshot is void."""
        if why := self.why_void():
            raise HostError(f"the snapshot is void: {why}")
