"""Protection: protects guest memory by groups, and receives messages about it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator

from parallel_fixedram.engine.capture.snapshot.groups import Groups, Marked
from parallel_fixedram.engine.capture.snapshot.marks import Void
from parallel_fixedram.engine.capture.snapshot.pieces import Pieces
from parallel_fixedram.host.memory.userfaultfd import EventWaiting, PageFault, Remapped, Removed, Userfaultfd

RELEASE_BYTES = 2 << 20
"""Bytes released by one call; meanwhile the guest cannot change its mappings."""

_EVENT_MS = 1
"""How long to wait at a time until a process has gone on after its event was read."""


class _Quick:
    """The length of pieces that take no longer to protect than they should.

    Attributes:
        length: of the next piece, bytes.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._least, self._most = pieces.least_protected_bytes, pieces.most_protected_bytes
        self._seconds = pieces.protect_seconds
        self.length = self._least

    def took(self, seconds: float) -> None:
        """Adapt to how long the last piece took."""
        slow = seconds > self._seconds
        self.length = max(self.length // 2, self._least) if slow else min(2 * self.length, self._most)


class Protection:
    """A userfaultfd that knows groups.

    Args:
        userfaultfd: enabled; the blocks of ``groups`` are registered with it.
        groups: where they are.
        beat: called again and again while it has to wait.
        pieces: how much is done at a time.

    Attributes:
        faulted: units that writes wait for, in order of arrival.
        lost: groups whose memory was discarded, moved or unmapped, and which of these.
    """

    def __init__(self, userfaultfd: Userfaultfd, groups: Groups, beat: Callable[[], None], pieces: Pieces) -> None:
        self._userfaultfd = userfaultfd
        self._groups = groups
        self._beat = beat
        self._pieces = pieces
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)
        self.faulted: list[range] = []
        self.lost: list[tuple[Void, range]] = []

    def fileno(self) -> int:
        """The descriptor, which is readable when there is something to ``take``."""
        return self._userfaultfd.fileno()

    def take(self) -> bool:
        """Read messages into ``faulted`` and ``lost``; returns whether there were any. A process that waits for its
        event to be read goes on."""
        messages = self._userfaultfd.read()
        for message in messages:
            if isinstance(message, PageFault):
                self.faulted.append(self._groups.unit(message.address))
            elif isinstance(message, Remapped):
                self._lose(Void.REMAPPED, message.source, message.source + message.length)
            elif isinstance(message, Removed):
                self._lose(Void.DISCARDED, message.start, message.end)
            else:
                self._lose(Void.UNMAPPED, message.start, message.end)
        return bool(messages)

    def protecting(self, marked: Callable[[slice], Marked] | None = None) -> Iterator[bool]:
        """Protect all groups, or those marked; yields True after every piece."""
        quick = _Quick(self._pieces)
        for groups in self._groups.pieces(lambda: quick.length, marked):
            started = time.perf_counter()
            self._call(self._userfaultfd.protect, groups)
            quick.took(time.perf_counter() - started)
            yield True

    def pieces(self, length: int, marked: Callable[[slice], Marked]) -> Iterator[range]:
        """All marked groups (Groups.pieces)."""
        return self._groups.pieces(length, marked)

    def longer(self, groups: range, more: int) -> range:
        """Some groups, and up to ``more`` behind them (Groups.longer)."""
        return self._groups.longer(groups, more)

    def around(self, groups: range, length: int) -> range:
        """Some groups, and their neighbours (Groups.around)."""
        return self._groups.around(groups, length)

    def unprotect(self, groups: range) -> None:
        """Let writes to these groups pass, waiting ones included."""
        self._call(self._userfaultfd.unprotect, groups)

    def unprotecting(self, marked: Callable[[slice], Marked]) -> Iterator[range]:
        """The same for all marked groups, a piece at a time."""
        for groups in self._groups.pieces(RELEASE_BYTES, marked):
            self.unprotect(groups)
            yield groups

    def releasing(self) -> Iterator[bool]:
        """Release all groups for good; yields True after every piece."""
        for groups in self._groups.pieces(RELEASE_BYTES):
            self._call(self._userfaultfd.unregister, groups)
            yield True

    def close(self) -> None:
        """Release the rest."""
        self._userfaultfd.close()

    def _lose(self, why: Void, start: int, end: int) -> None:
        self.lost += [(why, groups) for groups in self._groups.within(start, end)]

    def _call(self, call: Callable[[int, int], None], groups: range) -> None:
        """Repeat a call until it succeeds: the kernel refuses it while a message waits to be read.

        Raises:
            HostError: it failed.
            MachineError: the process has ended.
        """
        while True:
            try:
                return call(*self._groups.span(groups))
            except EventWaiting:
                if not self.take():  # read already, but the process has not gone on yet
                    self._poll.poll(_EVENT_MS)
                self._beat()
