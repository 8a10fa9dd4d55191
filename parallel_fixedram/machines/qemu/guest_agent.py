"""GuestAgent: what can be asked of the guest agent in a guest, through the socket of its serial port.

::

    us --- {"execute": "guest-get-time"} ---> QEMU ---> virtio port ---> qemu-ga      sent to several, then waited for
       <-- {"return": 1795961299000000000} ---------------------------

Who answers is inside the guest: nothing that it says is believed, and how much it says is limited. There is no
greeting, and what somebody else's session left on the line may come first: a session begins with
``guest-sync-delimited``, whose answer follows a byte that is in no JSON (QEMU qga/qapi-schema.json).
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
"""How long an agent may take for an answer."""

_SENTINEL = b"\xff"
_MOST_BYTES = 64 << 20
"""Of an answer: an agent gives up to 16 MiB of each output of a command, in base64 (QEMU qga/commands.c)."""
_PIECE = 1 << 16


class GuestAgent(Closing):
    """A session with an agent; use it as a context manager, or ``close`` it.

    Args:
        path: of the socket; QEMU listens on it.
        guest: which one it is in, for messages.
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
        """End the session; more than once does no harm."""
        self._sock.close()

    def greet(self) -> int:
        """Ask for what has to come before anything else; returns what ``greeted`` has to wait for.

        Raises:
            MachineError: the connection is lost.
        """
        number = int.from_bytes(os.urandom(4))
        self._write(_SENTINEL + _packed("guest-sync-delimited", {"id": number}))
        return number

    def greeted(self, number: int) -> None:
        """Drop everything up to the answer to ``greet``.

        Raises:
            MachineError: none comes.
        """
        expected = {"return": number}
        while True:
            line = self._line().rpartition(_SENTINEL)[2]
            with contextlib.suppress(ValueError, RecursionError):  # of an earlier session, and cut off
                if json.loads(line) == expected:
                    return

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Send a command; one at a time.

        Raises:
            MachineError: the connection is lost.
        """
        self._write(_packed(command, arguments))

    def answer(self) -> Any:
        """What the command that was sent returns.

        Raises:
            MachineError: the agent refuses, does not answer in time, or not like an agent.
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
        """What to raise when an answer is not what an agent gives."""
        text = answer[:_PIECE].decode(errors="replace") if isinstance(answer, bytes) else str(answer)
        return self.error(f"its answer is not understood: {shown(text)}")

    def _write(self, data: bytes) -> None:
        self._deadline = time.monotonic() + self._timeout
        try:
            self._sock.settimeout(self._timeout)
            self._sock.sendall(data)
        except OSError as error:
            raise self._lost("it takes no command", error) from error

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
