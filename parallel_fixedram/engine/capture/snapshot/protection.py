"""Protection: the memory of a guest by groups, as its handler protects it and hears of it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator

from parallel_fixedram.engine.capture.snapshot.groups import Groups, Marked
from parallel_fixedram.engine.capture.snapshot.marks import Void
from parallel_fixedram.host.memory.userfaultfd import EventWaiting, PageFault, Remapped, Removed, Userfaultfd

PROTECT_BYTES = (2 << 20, 64 << 20)
"""Least and most memory that is protected with one call; faults are served in between."""

_PROTECT_SECONDS = 0.0002
"""Which one call should not exceed: memory that was never touched takes a tenth of the time that other memory takes."""

RELEASE_BYTES = 2 << 20
"""Memory that is let go with one call, which keeps the guest from changing its mappings as long as it lasts."""

_EVENT_MS = 1
"""How long to wait at a time for a process to go on after its event was read."""


class _Quick:
    """How long a piece may be to be protected quickly, bytes: a power of two times ``least``, ``most`` at most."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.length = least

    def took(self, seconds: float) -> None:
        """The last one did."""
        slow = seconds > _PROTECT_SECONDS
        self.length = max(self.length // 2, self._least) if slow else min(2 * self.length, self._most)


class Protection:
    """A userfaultfd that knows groups.

    Args:
        userfaultfd: enabled; the blocks of ``groups`` are registered with it.
        groups: where they are.
        beat: called while it has to wait.

    Attributes:
        faulted: units that somebody waits to write, as they were read.
        lost: groups whose memory is no more what it was, and why.
    """

    def __init__(self, userfaultfd: Userfaultfd, groups: Groups, beat: Callable[[], None]) -> None:
        self._userfaultfd = userfaultfd
        self._groups = groups
        self._beat = beat
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)
        self.faulted: list[range] = []
        self.lost: list[tuple[Void, range]] = []

    def fileno(self) -> int:
        """What is readable when there is something to ``take``."""
        return self._userfaultfd.fileno()

    def take(self) -> bool:
        """Read what has come into ``faulted`` and ``lost``; whether anything had. Who waits for an event goes on."""
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
        """From now on who writes them waits: all groups, or those marked; True after every piece."""
        pieces = _Quick(*PROTECT_BYTES)
        for groups in self._groups.pieces(lambda: pieces.length, marked):
            started = time.perf_counter()
            self._call(self._userfaultfd.protect, groups)
            pieces.took(time.perf_counter() - started)
            yield True

    def pieces(self, length: int, marked: Callable[[slice], Marked]) -> Iterator[range]:
        """All groups that are marked (Groups.pieces)."""
        return self._groups.pieces(length, marked)

    def longer(self, groups: range, more: int) -> range:
        """Some groups, and up to so many behind them that lie together with them (Groups.longer)."""
        return self._groups.longer(groups, more)

    def around(self, groups: range, length: int) -> range:
        """Some groups, and their neighbours (Groups.around)."""
        return self._groups.around(groups, length)

    def unprotect(self, groups: range) -> None:
        """Who waits to write them goes on, and nobody waits any more."""
        self._call(self._userfaultfd.unprotect, groups)

    def unprotecting(self, marked: Callable[[slice], Marked]) -> Iterator[range]:
        """The same for all that are marked, a piece at a time."""
        for groups in self._groups.pieces(RELEASE_BYTES, marked):
            self.unprotect(groups)
            yield groups

    def releasing(self) -> Iterator[bool]:
        """Let go of all groups for good; True after every piece."""
        for groups in self._groups.pieces(RELEASE_BYTES):
            self._call(self._userfaultfd.unregister, groups)
            yield True

    def close(self) -> None:
        """Let go of what is left."""
        self._userfaultfd.close()

    def _lose(self, why: Void, start: int, end: int) -> None:
        self.lost += [(why, groups) for groups in self._groups.within(start, end)]

    def _call(self, call: Callable[[int, int], None], groups: range) -> None:
        """Call until it is done: as long as an event is on its way, the kernel only says so.

        Raises:
            HostError: it cannot be done.
            MachineError: the process has ended.
        """
        while True:
            try:
                return call(*self._groups.span(groups))
            except EventWaiting:
                if not self.take():  # read already, but who waited for that has not gone on yet
                    self._poll.poll(_EVENT_MS)
                self._beat()
