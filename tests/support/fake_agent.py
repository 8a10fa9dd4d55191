"""FakeAgent: a guest agent that answers by a script, for what a real one does not do, or not to order.

::

    with FakeAgent(path, {"guest-exec": returns({"pid": 1}), "guest-get-time": sends(b"garbage\\n")}) as agent:
        ...                                       # whatever talks to it
    assert agent.commands == [("guest-exec", {...})]

An answer is a function of a command's arguments that returns bytes, or None to close the connection; ``in_turn(a, b)``
is a for the first time, b from then on. What is in no script is refused. It serves one client at a time, as QEMU does.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Answer = Callable[[dict[str, Any]], bytes | None]


def line(value: object) -> bytes:
    """An object as an agent writes it."""
    return json.dumps(value).encode() + b"\n"


def returns(value: object) -> Answer:
    """An ordinary answer."""
    return lambda _: line({"return": value})


def refuses(text: str) -> Answer:
    """An error answer."""
    return lambda _: line({"error": {"class": "GenericError", "desc": text}})


def sends(data: bytes) -> Answer:
    """These bytes and nothing else; none at all keeps the client waiting."""
    return lambda _: data


def closes(_: dict[str, Any]) -> None:
    """The connection is closed."""


def in_turn(*answers: Answer) -> Answer:
    """One after the other; the last one stays."""
    left = list(answers)
    return lambda arguments: (left.pop(0) if len(left) > 1 else left[0])(arguments)


def synced(arguments: dict[str, Any]) -> bytes:
    """What a real one answers to guest-sync-delimited."""
    return b"\xff" + line({"return": arguments["id"]})


class FakeAgent:
    """A context manager around a thread.

    Args:
        path: of its socket.
        answers: by command.
        before: what is on the line when a client comes.

    Attributes:
        commands: what came, in order, as (command, arguments), but for the first.
    """

    def __init__(self, path: Path, answers: Mapping[str, Answer], *, before: bytes = b"") -> None:
        self.path = str(path)
        self._answers = {"guest-sync-delimited": synced, **answers}
        self._before = before
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines, contextlib.suppress(OSError):
                client.sendall(self._before)
                for each in lines:
                    if (answer := self._answer(each)) is None:
                        break
                    client.sendall(answer)

    def _answer(self, data: bytes) -> bytes | None:
        asked = json.loads(data.removeprefix(b"\xff"))
        name, arguments = asked["execute"], asked.get("arguments", {})
        if name != "guest-sync-delimited":
            self.commands.append((name, arguments))
        return self._answers.get(name, refuses(f"The command {name} has not been found"))(arguments)
