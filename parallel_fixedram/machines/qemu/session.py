"""Session: QEMU's own client library, called one blocking call at a time.

A call ends with the result of the library's coroutine, when its time is up, as soon as QEMU ends, or with what a signal
handler raises (``event_loop.py``); the session survives an interrupted call. Whatever goes wrong at the other end is
raised as a MachineError that names the socket. What arrives cannot fill memory: the library reads lines of up to 10
MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qemu.qmp import ExecInterruptedError, ExecuteError, Message, QMPError, Runstate
from qemu.qmp.message import DeserializationError
from qemu.qmp.qmp_client import BadReplyError, ServerParseError

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import MachineError, os_message
from parallel_fixedram.core.words import MOST_CHARACTERS, shown
from parallel_fixedram.host.processes import signals
from parallel_fixedram.machines.qemu.event_loop import LAST_WORDS_SECONDS, EndedError, EventLoop, LateError, Work
from parallel_fixedram.machines.qemu.exchange import Client, NoAnswerError

_CLOSE_SECONDS = 1.0
_SEVERAL_LINES = "it sends an object over several lines"
_CLOSED = "the connection was closed"
_ENDED = "its process has ended"
_OVER = "the session is closed"

_log = logging.getLogger(__name__)


class Session(Closing):
    """The library's client over a connected socket; a context manager.

    Calls may come from any thread, but never two at once, and not from inside a running event loop. The session
    survives error answers and time-outs (a late answer is dropped); once it is lost, every call reports that.

    Args:
        sock: connected, with nothing read from it yet; closed with the session.
        name: of the other end, for messages.
        timeout: seconds, for calls without a time-out of their own.
        pidfd: descriptor of QEMU's process: if that ends, so do calls.
        kind: kind of the other end, for messages.

    Attributes:
        sock, name, kind, timeout: as given.
        client: the library's.
        listeners: called with every event that the library does not see; they must not raise.
        loop: runs the library.
    """

    def __init__(
        self, sock: socket.socket, name: str, timeout: float, pidfd: int | None, kind: str = "QMP socket"
    ) -> None:
        self.sock = sock
        self.name = name
        self.kind = kind
        self.timeout = timeout
        self.loop = EventLoop(pidfd)
        self._lost = ""
        self.listeners: list[Callable[[Message], None]] = []
        self.client = Client(__name__.replace(".", "-"), sock, self._hear)
        self.client.logger.addFilter(_only_for_debugging)
        self.client.negotiate = False  # its negotiation fails if an event comes before the reply
        self.client.events.event_filter = lambda _event: False  # else it would keep all events for ever

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None, timeout: float | None, fd: int | None = None
    ) -> Any:
        """Execute a command, and return what it returns (``Monitor.execute``)."""
        late, timeout = f"QEMU did not answer {command!r}", self.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        if fd is None and not self._lost and (request := self.client.ask(command, arguments)):
            with contextlib.suppress(NoAnswerError), self._explained(late, timeout, command):
                return self.client.answer(request, deadline, self.loop.pidfd)
            with self._explained(late, timeout, command):
                return self._run(self._wait_for_the_end, deadline - time.monotonic())

        async def send() -> object:
            if fd is not None:
                self.client.send_fd_scm(fd)  # QEMU keeps it for the next command
            return await self.client.execute(command, arguments)

        return self.run(late, timeout, send, command)

    def run(self, late: str, timeout: float | None, work: Work, command: str = "") -> Any:
        """Run one of the library's coroutines to its end.

        Args:
            late: the error message, without a reason, if nothing comes.
            timeout: seconds; None for the session's.
            work: makes the coroutine.
            command: the command that it executes, for the message if QEMU refuses it.

        Raises:
            TimedOut: nothing came in time.
            MachineError: the session is lost, or QEMU refuses.
        """
        timeout = self.timeout if timeout is None else timeout
        if self._lost:
            raise self.error(f"{late}: {self._lost}")
        with self._explained(late, timeout, command):
            return self._run(work, timeout)

    def _run(self, work: Work, seconds: float) -> Any:
        self.client.give_back()
        return self.loop.run(work, seconds)

    @contextlib.contextmanager
    def _explained(self, late: str, timeout: float, command: str) -> Iterator[None]:
        """Turn the library's exceptions into ours."""
        try:
            yield
        except EndedError:
            raise self.error(f"{late}: {_ENDED}") from None
        except LateError:
            raise TimedOut(self.error(f"{late} within {timeout:g} s").message) from None
        except ExecuteError as error:
            raise self.error(f"QEMU refuses {command!r}: {shown(str(error))}") from None
        except (QMPError, EOFError, OSError) as error:
            raise self._with_reason(late, error) from error

    async def _wait_for_the_end(self) -> None:
        """Have the library find out why there is no answer."""
        while self.client.runstate is Runstate.RUNNING:
            await self.client.runstate_changed()
        raise ExecInterruptedError

    def _hear(self, event: Message) -> None:
        for listener in self.listeners:
            listener(event)

    async def connect(self) -> None:
        """Have the library exchange greetings.

        Raises:
            QMPError: it fails, or the other end has gone already.
        """
        try:
            await self.client.connect(self.sock)
        except AssertionError as error:  # the library assumes that nobody disconnects right after a greeting
            raise ExecInterruptedError from error

    def close(self) -> None:
        """End the session within seconds, whatever its state; may be called more than once."""
        if self.loop.is_closed():
            return
        with signals.held():
            try:
                self.loop.close(self._disconnect)
            finally:
                self._lost = self._lost or _OVER
                self.sock.close()

    async def _disconnect(self) -> None:
        """End the library's session and note how it ended."""
        if self.client.runstate is Runstate.IDLE:
            return
        ending = asyncio.create_task(self.client.disconnect())
        done, _ = await asyncio.wait({ending}, timeout=_CLOSE_SECONDS)
        if not done:  # it waits for the other end to read what we have sent
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            await asyncio.wait({ending})
        error = ending.exception()
        self._lost = self._lost or (_reason(error) if error else _OVER)

    def error(self, text: str) -> MachineError:
        """An error that names the other end."""
        return MachineError(f"{self.kind} {self.name!r}: {text}")

    def _with_reason(self, late: str, error: Exception) -> MachineError:
        """An error with the reason why nothing came; only ending the session reveals it."""
        if self.client.runstate is Runstate.DISCONNECTING:
            self.loop.turn(self._disconnect)
            if self._lost == _CLOSED and self.loop.has_ended(LAST_WORDS_SECONDS):
                self._lost = _ENDED
        return self.error(f"{late}: {self._lost or _reason(error)}")


class TimedOut(MachineError):
    """Time is up."""


def _only_for_debugging(_record: logging.LogRecord) -> bool:
    """The library logs errors that we raise anyway."""
    return _log.isEnabledFor(logging.DEBUG)


def _reason(error: BaseException) -> str:
    """The meaning of an exception of the library, in one line."""
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
            text = shown(raw[: 4 * MOST_CHARACTERS].decode(errors="replace"))
            return f"what came instead is not JSON: '{text}'"
        case ValueError(args=(str(text),)) if text.startswith("Separator is"):  # asyncio's StreamReader.readline
            return "what came instead is too long a line"
        case RecursionError():  # its text differs between versions of Python
            return "what came instead is nested too deeply"
        case ServerParseError(msg=message) | BadReplyError(msg=message):
            return f"what came instead is not understood: {shown(str(dict(message)))}"
        case KeyError(args=(str(text),)):
            return f"what came instead is not understood: {shown(text)}"
    return f"what came instead is not understood: {shown(str(error)) or type(error).__name__}"
