"""FakeQmp: a QMP server that answers by a script; for what a real QEMU does not do, or not to order.

::

    with FakeQmp(tmp_path / "qmp", {"query-status": returns({"status": "running"}), "stop": closes}) as server:
        ...                                      # whatever talks to it: a Monitor, or `parallel-fixedram ... SOCKET`
        assert server.commands == ["stop"]       # without qmp_capabilities

It is a process of its own (``server.pid``), so that it can be killed, and serves one client after the other, as QEMU
does. The script is a dict by command name; ``"*"`` is for all others, which are refused if there is no such entry. An
answer is a function: it gets the Request and returns, or yields, the bytes to be sent, each piece on its own. It runs
in the server's process, so what it remembers is seen only by other answers. There are ready-made ones:

========================  ============================================================================================
``returns(value)``        an ordinary answer
``refuses(desc)``         an error answer
``sends(data, ...)``      these bytes and nothing else: garbage, half a line, an event without its command's answer
``closes``                no answer; the connection is closed
``dies``                  no answer; the process is killed
``ignores``               no answer; the session goes on
``hangs``                 no answer, and nothing is read any more
``signals(signum)``       no answer; the client's process gets a signal, right in the middle of its call
``slowly(answer)``        the same answer, byte by byte
``floods(count, answer)`` so many events, then the answer
``renamed(id, answer)``   the answer, with the id of another command
``chain(a, b, ...)``      all of them, one behind the other: ``chain(sends(b'{"ret'), closes)``
``in_turn(a, b, ...)``    a for the first time the command comes, b for the second, ...; the last one stays
``Later``                 an answer that is kept back until another command comes
``FdSets``                add-fd and remove-fd, and what a command writes into ``/dev/fdset/N``
========================  ============================================================================================
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TIMEOUT = 30.0
PR_SET_PDEATHSIG = 1
VERSION = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "fake"}
MIB = 1 << 20

_libc = ctypes.CDLL(None)


@dataclass
class Request:
    """A command as it came."""

    name: str
    arguments: dict[str, Any]
    id: Any
    client: int
    """Process id of the client."""
    fds: list[int] = field(default_factory=list)
    """Descriptors that came with it or since the last command; an answer that takes one removes it."""


Answer = Callable[[Request], Iterable[bytes]]


def line(message: object) -> bytes:
    """A message as QEMU writes it."""
    return json.dumps(message).encode() + b"\r\n"


def event(name: str, data: object = None) -> bytes:
    """A line that is an event; to be used with ``sends``."""
    message = {"event": name, "timestamp": {"seconds": 1, "microseconds": 0}}
    return line(message if data is None else {**message, "data": data})


GREETING = line({"QMP": {"version": VERSION, "capabilities": ["oob"]}})


def sends(*data: bytes) -> Answer:
    return lambda _request: data


def returns(value: object) -> Answer:
    return lambda request: [line({"return": value, "id": request.id})]


def refuses(desc: str, kind: str = "GenericError") -> Answer:
    return lambda request: [line({"error": {"class": kind, "desc": desc}, "id": request.id})]


def ignores(_request: Request) -> Iterable[bytes]:
    return []


def closes(_request: Request) -> Iterable[bytes]:
    raise EndOfSession


def hangs(_request: Request) -> Iterable[bytes]:
    while True:
        signal.pause()


def dies(_request: Request) -> Iterable[bytes]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def signals(signum: int) -> Answer:
    def send(request: Request) -> Iterable[bytes]:
        os.kill(request.client, signum)
        return []

    return send


def slowly(answer: Answer) -> Answer:
    return lambda request: (bytes([byte]) for data in answer(request) for byte in data)


def floods(count: int, answer: Answer = ignores, name: str = "RTC_CHANGE") -> Answer:
    def flood(request: Request) -> Iterator[bytes]:
        for _ in range(count):
            yield event(name, {"offset": 0})
        yield from answer(request)

    return flood


def renamed(other: object, answer: Answer) -> Answer:
    def rename(request: Request) -> Iterable[bytes]:
        return answer(replace(request, id=other))

    return rename


def chain(*answers: Answer) -> Answer:
    return lambda request: (data for answer in answers for data in answer(request))


def in_turn(*answers: Answer) -> Answer:
    rest = list(answers)
    return lambda request: (rest.pop(0) if len(rest) > 1 else rest[0])(request)


def endless_line(size: int) -> Answer:
    """So many bytes without the end of a line."""
    return lambda _request: (b"x" * MIB for _ in range(size // MIB))


class Later:
    """``{"slow": later.keeps(returns(1)), "next": later.before(returns(2))}``: ``next`` brings both answers."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    def keeps(self, answer: Answer) -> Answer:
        def keep(request: Request) -> Iterable[bytes]:
            self._kept.extend(answer(request))
            return []

        return keep

    def before(self, answer: Answer) -> Answer:
        def release(request: Request) -> Iterator[bytes]:
            while self._kept:
                yield self._kept.pop(0)
            yield from answer(request)

        return release


class FdSets:
    """``{**sets.answers, "xen-save-devices-state": sets.writes("filename", data)}``."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self.answers: dict[str, Answer] = {"add-fd": self._add, "remove-fd": self._remove}

    def writes(self, argument: str, data: bytes, answer: Answer | None = None) -> Answer:
        """Write into the set that an argument of the command names, then answer."""

        def write(request: Request) -> Iterable[bytes]:
            number = re.fullmatch(r"/dev/fdset/(\d+)", str(request.arguments.get(argument)))
            if number is None or int(number[1]) not in self._fds:
                return refuses("no such set of descriptors")(request)
            with open(os.dup(self._fds[int(number[1])]), "wb") as file:
                file.write(data)
            return (answer or returns({}))(request)

        return write

    def _add(self, request: Request) -> Iterable[bytes]:
        if not request.fds:
            return refuses("No file descriptor supplied via SCM_RIGHTS")(request)
        number, fd = len(self._fds), request.fds.pop(0)
        self._fds[number] = fd
        return returns({"fdset-id": number, "fd": fd})(request)

    def _remove(self, request: Request) -> Iterable[bytes]:
        fd = self._fds.pop(request.arguments["fdset-id"], None)
        if fd is None:
            return refuses("File descriptor named 'fdset-id' not found")(request)
        os.close(fd)
        return returns({})(request)


class EndOfSession(Exception):
    """The server closes the connection."""


class FakeQmp:
    """The server; a context manager. It listens already when the constructor returns.

    Args:
        path: where the socket is made.
        answers: the script.
        greeting: what a client gets first; its Request has no name.
    """

    def __init__(self, path: Path, answers: Mapping[str, Answer], *, greeting: Answer | None = None) -> None:
        self.path = path
        self._answers = {"qmp_capabilities": returns({}), **answers}
        self._greeting = greeting or sends(GREETING)
        self._record = os.memfd_create("requests")
        ready, ready_in_server = socket.socketpair()
        with ready, ready_in_server:
            self._process = multiprocessing.get_context("fork").Process(
                target=self._serve, args=(ready_in_server,), daemon=True
            )
            self._process.start()
            ready.settimeout(TIMEOUT)
            assert ready.recv(1)
        self.pid = self._process.pid or 0
        self.pidfd = os.pidfd_open(self.pid)

    @property
    def requests(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and arguments of every command that has come, qmp_capabilities too; each is here before its answer."""
        record = os.pread(self._record, os.fstat(self._record).st_size, 0)
        return [(name, arguments) for name, arguments in map(json.loads, record.splitlines())]

    @property
    def commands(self) -> list[str]:
        """Names of the commands that have come, without qmp_capabilities."""
        return [name for name, _ in self.requests if name != "qmp_capabilities"]

    def kill(self) -> None:
        """End the process, and wait for that; it is still ours to close."""
        self._process.kill()
        self._process.join(TIMEOUT)

    def close(self) -> None:
        self.kill()
        self._process.close()
        os.close(self.pidfd)
        os.close(self._record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- in the server's process

    def _serve(self, ready: socket.socket) -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(self.path))
        listener.listen(1)  # what a client finds behind the socket is the process that did this
        ready.send(b"!")
        while True:
            client, _ = listener.accept()
            with client, contextlib.suppress(EndOfSession, ConnectionError):
                self._converse(client)

    def _converse(self, client: socket.socket) -> None:
        peer = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._send(client, self._greeting(Request("", {}, None, peer)))
        fds: list[int] = []
        rest = ""
        while True:
            data, more, _, _ = socket.recv_fds(client, 1 << 16, 8)
            if not data:
                return
            fds += more
            rest += data.decode(errors="surrogateescape")
            while True:
                message, rest = split(rest)
                if message is None and RESET in rest:
                    rest = rest.split(RESET, 1)[1]
                    self._send(client, [line({"error": {"class": "GenericError", "desc": "JSON parse error"}})])
                    continue
                if message is None:
                    break
                request = Request(message["execute"], message.get("arguments", {}), message.get("id"), peer, fds)
                os.write(self._record, line([request.name, request.arguments]))
                answer = self._answers.get(request.name) or self._answers.get("*") or _unknown
                self._send(client, answer(request))

    def _send(self, client: socket.socket, data: Iterable[bytes]) -> None:
        for piece in data:
            client.sendall(piece)


RESET = "\udcff"
"""The byte 0xFF: QEMU complains, forgets what it had read of a message, and begins anew behind it."""


def split(text: str) -> tuple[dict[str, Any] | None, str]:
    """The first whole message and what follows it; or None and the text."""
    text = text.lstrip()
    try:
        message, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return None, text
    return message, text[end:]


def _unknown(request: Request) -> Iterable[bytes]:
    return refuses(f"The command {request.name} has not been found", "CommandNotFound")(request)
