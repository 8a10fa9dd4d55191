"""Session: QEMU's own client library, called one blocking call at a time.

A call ends with what the library's coroutine returns, when its time is up, at once when QEMU ends, or with what a
signal handler raises. Whatever goes wrong at the other end is a MachineError that names the socket, and nothing that
arrives is collected without bound: the library reads lines of up to 10 MiB.

::

    run --- a moment ---+--- a moment ---+--- a moment ---> result, MachineError
              loop        handlers, if     loop
              runs       signals arrived   runs

The event loop runs only inside the calls, and only while signals are held back: an exception out of a signal handler
would otherwise end up in whichever of the library's tasks is running, which takes it for the end of the session. So no
thread and no task outlives a call, and a session goes on after an interrupted one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate
from qemu.qmp.message import DeserializationError
from qemu.qmp.qmp_client import BadReplyError, ServerParseError

from parallel_fixedram.core.errors import HostError, MachineError, os_message
from parallel_fixedram.host.processes import forked, signals

_MOMENT_SECONDS = 0.05  # after which a signal takes effect at the latest
_CLOSE_SECONDS = 1.0
_LAST_WORDS_SECONDS = 0.1
_MOST_EVENTS = 1000
_MOST_CHARACTERS = 200
_SEVERAL_LINES = "it sends an object over several lines"
_CLOSED = "the connection was closed"
_ENDED = "its process has ended"

_T = TypeVar("_T")
_Work = Callable[[], Coroutine[Any, Any, Any]]

_log = logging.getLogger(__name__)


class Session:
    """The library's client over a connected socket; a context manager.

    Calls may come from any thread, but never two at once, and not from inside a running event loop. After an error
    answer or a time-out the session goes on (an answer that comes late is dropped); once it is lost, every call says
    so.

    Args:
        sock: connected, and nothing read from it; closed with the session.
        name: of the socket, for messages.
        timeout: seconds for every call that is not given its own.
        pidfd: descriptor of QEMU's process; its end ends every call.

    Attributes:
        sock, name, timeout: as given.
        pidfd: as given; may be set later, and stays the caller's to close.
        client: the library's.
    """

    def __init__(self, sock: socket.socket, name: str, timeout: float, pidfd: int | None) -> None:
        self.sock = sock
        self.name = name
        self.timeout = timeout
        self.pidfd = pidfd
        self._lost = ""
        self._task: asyncio.Task[Any] | None = None
        try:
            self._loop = asyncio.new_event_loop()
        except OSError as error:
            raise HostError.from_os("cannot speak QMP", error) from error
        self._loop.set_exception_handler(lambda _loop, context: _log.debug("event loop: %s", context))
        self.client = QMPClient(__name__.replace(".", "-"))
        self.client.logger.addFilter(_only_for_debugging)
        self.client.negotiate = False  # for that it expects a reply where an event may come first
        self.client.events.event_filter = lambda _event: False  # it would keep every event for ever

    def run(self, late: str, timeout: float | None, work: _Work, command: str = "") -> Any:
        """Run one of the library's coroutines to its end.

        Args:
            late: what is to be said when nothing comes, without a reason.
            timeout: seconds; None for the session's.
            work: makes the coroutine.
            command: what QEMU refuses if it refuses.

        Raises:
            TimedOut: nothing comes in time.
            MachineError: nothing can come, or QEMU refuses.
        """
        timeout = self.timeout if timeout is None else timeout
        if self._lost:
            raise self.error(f"{late}: {self._lost}")
        if self._task is not None:  # a signal kept the last call from its clean-up
            self._turn(self._abandon)
        deadline = time.monotonic() + timeout
        try:
            while not self._turn(lambda: self._advance(work, deadline)):
                pass
            if self._task is not None and self._task.done():
                task, self._task = self._task, None
                return task.result()
            if self._has_ended():
                raise self.error(f"{late}: {_ENDED}")
            raise TimedOut(self.error(f"{late} within {timeout:g} s").message)
        except ExecuteError as error:
            raise self.error(f"QEMU refuses {command!r}: {shown(str(error))}") from None
        except (QMPError, EOFError, OSError) as error:
            raise self._explained(late, error) from error
        finally:
            if self._task is not None:
                self._turn(self._abandon)

    @contextlib.contextmanager
    def collect(self, names: tuple[str, ...], ignored: Collection[str] = ()) -> Iterator[Collector]:
        """Keep events from now on until the block is left; ``names`` and ``ignored`` as for Collector.

        Raises:
            MachineError: the session is lost.
        """
        self.take_in()
        collector = Collector(names, ignored)
        with self.client.listen(collector):
            yield collector

    def take_in(self) -> None:
        """Let the library see what has arrived already.

        Raises:
            MachineError: the session is lost.
        """
        self.run("QEMU cannot be listened to", None, self._take_in)

    async def connect(self) -> None:
        """Have the library greet and be greeted.

        Raises:
            QMPError: that fails, or whoever answered has gone already.
        """
        try:
            await self.client.connect(self.sock)
        except AssertionError as error:  # the library takes for granted that nobody ends right behind a greeting
            raise ExecInterruptedError from error

    async def _take_in(self) -> None:
        for _ in range(3):  # the socket is read, the reader wakes up, the reader is through
            await asyncio.sleep(0)
        if self.client.runstate is not Runstate.RUNNING:
            raise ExecInterruptedError

    async def next_event(self, collector: Collector) -> Message:
        """Wait for an event, or for the end of the session, which the library tells commands but not listeners."""
        ended = self._loop.create_task(self.client.runstate_changed())
        arrived = self._loop.create_task(collector.arrived.wait())
        try:
            await asyncio.sleep(0)  # from now on both notice
            if not collector.kept and self.client.runstate is Runstate.RUNNING:
                await asyncio.wait({ended, arrived}, return_when=asyncio.FIRST_COMPLETED)
            if not collector.kept:
                raise ExecInterruptedError
            return await collector.get()
        finally:
            ended.cancel()
            arrived.cancel()
            await asyncio.gather(ended, arrived, return_exceptions=True)

    def close(self) -> None:
        """End the session, whatever state it is in, within seconds; more than once does no harm."""
        if self._loop.is_closed():
            return
        with signals.held():
            try:
                self._loop.run_until_complete(self._end())
            finally:
                self._loop.close()
                self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _turn(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run the loop until a coroutine of ours is through; handlers of signals that arrived run behind that."""
        with signals.held():
            return self._loop.run_until_complete(work())

    async def _advance(self, work: _Work, deadline: float) -> bool:
        """Let the call go on for a moment; returns whether there is nothing more to wait for."""
        if self._task is None:
            self._task = self._loop.create_task(work())
        waiting: set[asyncio.Future[Any]] = {self._task}
        if self.pidfd is not None:
            ended = self._loop.create_future()
            waiting.add(ended)
            self._loop.add_reader(self.pidfd, ended.cancel)  # which may happen more than once
        try:
            seconds = min(_MOMENT_SECONDS, max(0.0, deadline - time.monotonic()))
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self.pidfd is not None:
                self._loop.remove_reader(self.pidfd)
        if self._task.done():
            return True
        if self._has_ended():  # what it said last has arrived before that
            await asyncio.wait({self._task}, timeout=_LAST_WORDS_SECONDS)
            return True
        return time.monotonic() >= deadline

    async def _abandon(self) -> None:
        """End the call; an answer to it that still comes is dropped by the library."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _has_ended(self, seconds: float = 0.0) -> bool:
        """Whether QEMU's process is no more."""
        return self.pidfd is not None and forked.has_ended(self.pidfd, seconds)

    async def _disconnect(self) -> None:
        """End the library's session and note how it ended."""
        if self.client.runstate is Runstate.IDLE:
            return
        ending = self._loop.create_task(self.client.disconnect())
        done, _ = await asyncio.wait({ending}, timeout=_CLOSE_SECONDS)
        if not done:  # it waits for the other end to read what we have sent
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            await asyncio.wait({ending})
        error = ending.exception()
        self._lost = self._lost or (_reason(error) if error else "the session is closed")

    async def _end(self) -> None:
        await self._abandon()
        await self._disconnect()
        self._lost = self._lost or "the session is closed"
        await self._loop.shutdown_asyncgens()

    def error(self, text: str) -> MachineError:
        """An error that names the socket."""
        return MachineError(f"QMP socket {self.name!r}: {text}")

    def _explained(self, late: str, error: Exception) -> MachineError:
        """Say why nothing came; only the end of the session tells that."""
        if self.client.runstate is Runstate.DISCONNECTING:
            self._turn(self._disconnect)
            if self._lost == _CLOSED and self._has_ended(_LAST_WORDS_SECONDS):
                self._lost = _ENDED
        return self.error(f"{late}: {self._lost or _reason(error)}")


class TimedOut(MachineError):
    """Time is up."""


class Collector(EventListener):
    """A listener with a bound; the library's own also keeps what was taken.

    Args:
        names: of the events it keeps; all of them without any.
        ignored: names of events that it does not keep.

    Attributes:
        kept: the newest of those that have arrived, not yet taken.
        lost: whether an older one had to make room since ``clear``.
    """

    def __init__(self, names: tuple[str, ...], ignored: Collection[str] = ()) -> None:
        super().__init__(names, lambda event: event["event"] not in ignored)
        self.kept: deque[Message] = deque(maxlen=_MOST_EVENTS)
        self.lost = False
        self.arrived = asyncio.Event()

    async def put(self, event: Message) -> None:
        """Keep it, if it is one of ours; called by the library."""
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


def _only_for_debugging(_record: logging.LogRecord) -> bool:
    """The library logs as errors what our exceptions say as well."""
    return _log.isEnabledFor(logging.DEBUG)


def no_answer(command: str) -> str:
    """What to say when nothing comes."""
    return f"QEMU did not answer {command!r}"


def _reason(error: BaseException) -> str:
    """What the library's exception means, in one line."""
    while isinstance(inner := getattr(error, "exc", None), Exception):
        error = inner
    match error:
        case EOFError() | ConnectionError():
            return _CLOSED
        case OSError(errno=int(number)):
            return os_message(number)
        case DeserializationError(raw=bytes(raw)) if raw.strip() == b"{":
            return f"{_SEVERAL_LINES}, as QEMU does with pretty=on"
        case DeserializationError(raw=bytes(raw)) | UnicodeDecodeError(object=bytes(raw)):
            text = shown(raw[: 4 * _MOST_CHARACTERS].decode(errors="replace"))
            return f"what came instead is not JSON: '{text}'"
        case ValueError(args=(str(text),)) if text.startswith("Separator is"):  # asyncio's StreamReader.readline
            return "what came instead is too long a line"
        case RecursionError():  # which every Python words in its own way
            return "what came instead is nested too deeply"
        case ServerParseError(msg=message) | BadReplyError(msg=message):
            return f"what came instead is not understood: {shown(str(dict(message)))}"
        case KeyError(args=(str(text),)):
            return f"what came instead is not understood: {shown(text)}"
    return f"what came instead is not understood: {shown(str(error)) or type(error).__name__}"


def shown(text: str) -> str:
    """A stranger's text as one short line of printable characters."""
    cut = text.strip()[: _MOST_CHARACTERS + 1]
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
