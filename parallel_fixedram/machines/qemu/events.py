"""Events: what a QEMU tells by itself, kept from the moment somebody listens."""

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
    """Events since ``listen``; the newest 1000, should nobody take them."""

    def __init__(self, session: Session, collector: _Collector) -> None:
        self._session = session
        self._collector = collector

    def clear(self) -> None:
        """Forget those that have arrived, also unread ones.

        Raises:
            MachineError: the session is lost.
        """
        _take_in(self._session)
        self._collector.clear()

    def take(self) -> tuple[list[dict[str, Any]], bool]:
        """Those that have arrived, and whether that is all; those that QEMU sent before its last answer have."""
        complete = not self._collector.lost
        return [dict(event) for event in self._collector.clear()], complete

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """The next event, as QEMU sent it: ``event``, ``timestamp``, mostly ``data``.

        Args:
            timeout: seconds; None for the session's.

        Raises:
            MachineError: it does not come in time, or cannot come any more.
        """
        late = f"no event {' or '.join(sorted(self._collector.names))}"
        return dict(self._session.run(late, timeout, self._next))

    async def _next(self) -> Message:
        """Wait for an event, or for the end of the session, which the library tells commands but not listeners."""
        client, collector = self._session.client, self._collector
        ended = asyncio.create_task(client.runstate_changed())
        arrived = asyncio.create_task(collector.arrived.wait())
        try:
            await asyncio.sleep(0)  # from now on both notice
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
    """Keep events from now on until the block is left.

    Args:
        session: whose events.
        names: of those that are kept; all of them without any.
        ignored: names of those that are not.

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
    """Let the library see what has arrived already."""

    async def take_in() -> None:
        for _ in range(3):  # the socket is read, the reader wakes up, the reader is through
            await asyncio.sleep(0)
        if session.client.runstate is not Runstate.RUNNING:
            raise ExecInterruptedError

    session.run("QEMU cannot be listened to", None, take_in)


class _Collector(EventListener):
    """A listener with a bound; the library's own also keeps what was taken.

    Attributes:
        kept: the newest of those that have arrived, not yet taken.
        lost: whether an older one had to make room since ``clear``.
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
        """Keep it, if it is one of ours."""
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
