"""Exchange: a command and its answer directly over the socket, while the library's event loop is not running.

::

    us -- command --> QEMU
    us <-- events, answer -- QEMU

The library takes 0.7 ms per command, and during a pause the guest waits for that (docs/experiments.md). Only the normal
case is handled here. Anything else that arrives is left to the library, which deals with it when its loop runs next.
"""

from __future__ import annotations

import logging
import secrets
import select
import socket
import time
from collections.abc import Callable

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import BadReplyError

from parallel_fixedram.host.processes import signals

_WHOLE_BYTES = 4096
"""A Unix socket accepts up to this many at once, or none (Linux net/unix/af_unix.c, unix_stream_sendmsg)."""

_READ_BYTES = 1 << 16
_LONGEST_LINE = 10 << 20
"""Bytes; the library's own limit."""

_FIRST_IDS = 10**9

_log = logging.getLogger(__name__)


class NoAnswerError(Exception):
    """No answer came, or something else did; the library will find out what it means."""


class Client(QMPClient):
    """The library's client, which can also send commands without its event loop.

    Args:
        name: for its log.
        sock: the socket that it will use; non-blocking.
        hear: called with every event that is read here.
    """

    def __init__(self, name: str, sock: socket.socket, hear: Callable[[Message], None]) -> None:
        super().__init__(name)
        self._sock = sock
        self._hear = hear
        # not from 0: a QEMU that hung may send us answers to commands of an earlier client
        self._asked = self._execute_id = secrets.randbelow(_FIRST_IDS)
        self._unread = bytearray()  # read here, but not processed yet

    def ask(self, command: str, arguments: object = None) -> Message | None:
        """Send a command, unless the library has unfinished business; returns what was sent, or None.

        If the library has anything to send or to process, the command has to go through the library.

        Raises:
            TypeError, ValueError: the arguments cannot be encoded as JSON.
        """
        self._asked += 1
        request = Message({"execute": command, "id": str(self._asked)})
        if arguments is not None:
            request["arguments"] = arguments
        data = bytes(request)
        if len(data) > _WHOLE_BYTES or not self._is_quiet():
            return None
        _log.debug("--> %r", data)
        try:
            self._sock.send(data)
        except OSError:
            return None
        return request

    def answer(self, request: Message, deadline: float, pidfd: int | None) -> object:
        """The return value of a command that ``ask`` has sent.

        Args:
            request: what ``ask`` returned.
            deadline: until when to wait, on the monotonic clock.
            pidfd: descriptor of the process at the other end; if that ends, so does the wait.

        Raises:
            NoAnswerError: no answer came; the library can say why.
            ExecuteError: the command is refused.
            BadReplyError: the answer is malformed.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        answer = None
        while answer is None:
            seconds = deadline - time.monotonic()
            ready = dict(poll.poll(1000 * seconds)) if seconds > 0 else {}
            if self._sock.fileno() not in ready:
                raise NoAnswerError
            with signals.held():  # an exception between these two lines would lose what was read
                self._read()
                answer = self._sort(request["id"])
        return _returned(request, answer)

    def give_back(self) -> None:
        """Give the library what was read here but not processed; called before its loop runs."""
        if self._unread and self._reader is not None:
            with signals.held():
                self._reader.feed_data(bytes(self._unread))
                self._unread.clear()

    def _is_quiet(self) -> bool:
        """Whether the library has nothing to send, and has processed all that it has read.

        Its read buffer is private. If we cannot see it, all commands go through the library.
        """
        if self.runstate is not Runstate.RUNNING or self._reader is None or self._writer is None:
            return False
        unsorted, unsent = getattr(self._reader, "_buffer", True), self._writer.transport.get_write_buffer_size()
        return not (unsorted or unsent or self._outgoing.qsize())

    def _read(self) -> None:
        """Read what has arrived."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except OSError as error:
            raise NoAnswerError from error
        self._unread += data
        if not data or len(self._unread) > _LONGEST_LINE:
            raise NoAnswerError

    def _sort(self, asked: object) -> Message | None:
        """Process all complete lines; returns the answer if it is among them.

        An answer to another command comes too late, and is dropped.
        """
        answer = None
        while end := self._unread.find(b"\n") + 1:
            message = _understood(bytes(self._unread[:end]))
            if message is None:
                if answer is None:
                    raise NoAnswerError
                break  # the library will meet it when its loop runs
            del self._unread[:end]
            if "event" in message:
                self._hear(message)
            elif message.get("id") == asked:
                answer = message
        return answer


def _understood(line: bytes) -> Message | None:
    """An event or an answer; None for a line that may make the library end the session."""
    try:
        message = Message(line)
    except (QMPError, ValueError, RecursionError):
        return None
    if "event" in message:
        return message if isinstance(message["event"], str) else None
    return message if isinstance(message.get("id"), str) else None


def _returned(request: Message, answer: Message) -> object:
    """What an answer returns; errors are raised as the library does."""
    if "return" in answer:
        return answer["return"]
    try:
        refusal = ErrorResponse(answer)
    except (KeyError, TypeError) as error:
        raise BadReplyError("neither what is returned nor an error", answer, request) from error
    raise ExecuteError(refusal, request, answer)
