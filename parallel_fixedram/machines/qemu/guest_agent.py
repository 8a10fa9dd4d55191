"""GuestAgent: commands for the agent inside a guest, through the socket of its serial port.

::

    us --- {"execute": "guest-get-time"} ---> QEMU ---> virtio port ---> qemu-ga      sent to several, then waited for
       <-- {"return": 1795961299000000000} ---------------------------

The agent is inside the guest, so its answers are not trusted, and their length is limited. It sends no greeting, and
remains of an earlier session may come first. So a session begins with ``guest-sync-delimited``, whose answer is
preceded by a byte that never occurs in JSON (QEMU qga/qapi-schema.json).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import MachineError, os_message
from parallel_fixedram.core.words import shown

ANSWER_SECONDS = 20.0
"""How long an agent may take to answer."""

_SENTINEL = b"\xff"
_MOST_BYTES = 64 << 20
"""Limit for an answer: an agent returns up to 16 MiB of each output of a command, in base64 (QEMU qga/commands.c)."""
_PIECE = 1 << 16


class GuestAgent(Closing):
    """A session with an agent; use it as a context manager, or ``close`` it.

    Args:
        path: of the socket that QEMU listens on.
        guest: the guest's name, for messages.
        timeout: seconds for an answer.

    Raises:
        MachineError: nobody listens there.
    """

    def __init__(self, path: str, guest: str, *, timeout: float = ANSWER_SECONDS) -> None:
        self._name = f"{guest}: guest agent {path!r}"
        self._timeout = timeout
        self._received = bytearray()
        self._deadline = 0.0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.settimeout(timeout)
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise self._lost("cannot connect", error) from error

    def close(self) -> None:
        """End the session; may be called more than once."""
        self._sock.close()

    def greet(self) -> int:
        """Send the command that has to come first; returns what ``greeted`` needs.

        Raises:
            MachineError: the connection is lost.
        """
        number = int.from_bytes(os.urandom(4))
        self._write(_SENTINEL + _packed("guest-sync-delimited", {"id": number}))
        return number

    def greeted(self, number: int) -> None:
        """Drop everything up to the answer to ``greet``.

        Raises:
            MachineError: it does not come.
        """
        expected = {"return": number}
        while True:
            line = self._line().rpartition(_SENTINEL)[2]
            with contextlib.suppress(ValueError, RecursionError):  # the tail of an earlier session's answer
                if json.loads(line) == expected:
                    return

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Send a command, one at a time.

        Raises:
            MachineError: the connection is lost.
        """
        self._write(_packed(command, arguments))

    def answer(self) -> Any:
        """The return value of the command that was sent.

        Raises:
            MachineError: the agent refuses, does not answer in time, or its answer is malformed.
        """
        line = self._line()
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        match found:
            case {"return": value}:
                return value
            case {"error": {"desc": str(text)}}:
                raise self.error(f"it refuses: {shown(text)}")
        raise self.malformed(line)

    def error(self, text: str) -> MachineError:
        """An error that names the agent."""
        return MachineError(f"{self._name}: {text}")

    def malformed(self, answer: object) -> MachineError:
        """An error for an answer that no agent would give."""
        text = answer[:_PIECE].decode(errors="replace") if isinstance(answer, bytes) else str(answer)
        return self.error(f"its answer is malformed: {shown(text)}")

    def _write(self, data: bytes) -> None:
        self._deadline = time.monotonic() + self._timeout
        try:
            self._sock.settimeout(self._timeout)
            self._sock.sendall(data)
        except OSError as error:
            raise self._lost("it does not accept a command", error) from error

    def _line(self) -> bytes:
        """The next line, without its end."""
        searched = 0
        while (at := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._received += self._read()
            if len(self._received) > _MOST_BYTES:
                raise self.error(f"its answer has more than {_MOST_BYTES >> 20} MiB")
        line = bytes(self._received[:at])
        del self._received[: at + 1]
        return line

    def _read(self) -> bytes:
        try:
            if (left := self._deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            data = self._sock.recv(_PIECE)
        except OSError as error:
            raise self._lost("it does not answer", error) from error
        if not data:
            raise self.error("it does not answer: the connection was closed")
        return data

    def _lost(self, text: str, error: OSError) -> MachineError:
        if isinstance(error, TimeoutError):
            return self.error(f"{text} within {self._timeout:g} s")
        return self.error(f"{text}: {os_message(error.errno) if error.errno else shown(str(error))}")


def _packed(command: str, arguments: Mapping[str, Any] | None) -> bytes:
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}).encode() + b"\n"
