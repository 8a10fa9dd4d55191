"""Events: what a QEMU reports of its own accord, kept from when somebody begins to listen."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, Message, Runstate

from parallel_fixedram.machines.qemu.session import Session

_MOST_EVENTS = 1000


class Events:
    """Events since ``listen``; only the newest 1000 if nobody takes them."""

    def __init__(self, session: Session, collector: _Collector) -> None:
        self._session = session
        self._collector = collector

    def clear(self) -> None:
        """Forget all events that have arrived, even unread ones.

        Raises:
            MachineError: the session is lost.
        """
        _take_in(self._session)
        self._collector.clear()

    def take(self) -> tuple[list[dict[str, Any]], bool]:
        """Take the events that have arrived, and whether none was dropped. All that QEMU sent before its last answer
        have arrived."""
        complete = not self._collector.lost
        return [dict(event) for event in self._collector.clear()], complete

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """The next event, as QEMU sent it: ``event``, ``timestamp``, usually ``data``.

        Args:
            timeout: seconds; None for the session's.

        Raises:
            MachineError: none came in time, or none can come any more.
        """
        late = f"no event {' or '.join(sorted(self._collector.names))}"
        return dict(self._session.run(late, timeout, self._next))

    async def _next(self) -> Message:
        """Wait for an event or the end of the session. The library reports that end to commands, but not to
        listeners."""
        client, collector = self._session.client, self._collector
        ended = asyncio.create_task(client.runstate_changed())
        arrived = asyncio.create_task(collector.arrived.wait())
        try:
            await asyncio.sleep(0)  # now both tasks are waiting
            if not collector.kept and client.runstate is Runstate.RUNNING:
                await asyncio.wait({ended, arrived}, return_when=asyncio.FIRST_COMPLETED)
            if not collector.kept:
                raise ExecInterruptedError
            return await collector.get()
        finally:
            ended.cancel()
            arrived.cancel()
            await asyncio.gather(ended, arrived, return_exceptions=True)


@contextlib.contextmanager
def listen(session: Session, names: tuple[str, ...] = (), ignored: Collection[str] = ()) -> Iterator[Events]:
    """Keep events until the block is left.

    Args:
        session: whose events to keep.
        names: which events; all of them if empty.
        ignored: names of events not to keep.

    Raises:
        MachineError: the session is lost.
    """
    _take_in(session)
    collector = _Collector(names, ignored)
    with session.client.listen(collector):
        session.listeners.append(collector.keep)
        try:
            yield Events(session, collector)
        finally:
            session.listeners.remove(collector.keep)


def _take_in(session: Session) -> None:
    """Let the library process what has arrived already."""

    async def take_in() -> None:
        for _ in range(3):  # the socket is read, the reader wakes up, the reader is done
            await asyncio.sleep(0)
        if session.client.runstate is not Runstate.RUNNING:
            raise ExecInterruptedError

    session.run("QEMU cannot be listened to", None, take_in)


class _Collector(EventListener):
    """A listener with a bound; the library's own keeps even what was taken.

    Attributes:
        kept: the newest events that were not taken yet.
        lost: whether an event was dropped since ``clear``.
    """

    def __init__(self, names: tuple[str, ...], ignored: Collection[str]) -> None:
        super().__init__(names, lambda event: event["event"] not in ignored)
        self.kept: deque[Message] = deque(maxlen=_MOST_EVENTS)
        self.lost = False
        self.arrived = asyncio.Event()

    async def put(self, event: Message) -> None:
        """Called by the library."""
        self.keep(event)

    def keep(self, event: Message) -> None:
        """Keep an event if we listen for it."""
        if self.accept(event):
            self.lost = self.lost or len(self.kept) == _MOST_EVENTS
            self.kept.append(event)
            self.arrived.set()

    async def get(self) -> Message:
        """Take the oldest of ``kept``."""
        event = self.kept.popleft()
        if not self.kept:
            self.arrived.clear()
        return event

    def clear(self) -> list[Message]:
        """Take all of them."""
        events = list(self.kept)
        self.kept.clear()
        self.lost = False
        return events
