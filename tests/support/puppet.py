"""Puppet: a forked process that does one thing at a time when it is told to, and says what came of it."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
from collections.abc import Callable
from typing import Any, NoReturn, Self

from parallel_fixedram.host import linux

SECONDS = 20.0
"""Longer than anything takes; what takes longer waits for ever."""


def nothing() -> None:
    """What a process does first that does nothing first."""


class Puppet:
    """A context manager around such a process; it is killed at the end.

    Args:
        act: called there with what ``begin`` was given.
        first: what the process does first of all.

    Attributes:
        pid: the process.
    """

    def __init__(self, act: Callable[..., Any], first: Callable[[], object] = nothing) -> None:
        self._act = act
        self._first = first

    def __enter__(self) -> Self:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        us = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            self._serve(us, theirs)
        theirs.close()
        self._ours.settimeout(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._ours.close()

    def begin(self, *order: Any) -> None:
        """Have it act."""
        self._ours.send(pickle.dumps(order))

    def end(self) -> Any:
        """What came of it, which must not take for ever."""
        answer = self._ours.recv(1 << 16)
        assert answer, "the process has ended"
        result = pickle.loads(answer)
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, *order: Any) -> Any:
        """Both."""
        self.begin(*order)
        return self.end()

    def has_answered(self) -> bool:
        """Whether ``end`` would not have to wait."""
        return bool(self.ready(self._ours.fileno(), seconds=0))

    def answer_or(self, fd: int) -> bool:
        """Wait until it has answered, or until there is something to read from a descriptor; whether it has."""
        return self._ours.fileno() in self.ready(self._ours.fileno(), fd)

    @staticmethod
    def ready(*descriptors: int, seconds: float = SECONDS) -> list[int]:
        """Those of them that there is something to read from, after as long as that takes."""
        poll = select.poll()
        for fd in descriptors:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(seconds * 1000)]

    def prepare(self, ours: socket.socket) -> None:
        """What the process does first; its end of the socket is for whoever has more to tell."""
        self._first()

    def _serve(self, parent: int, ours: socket.socket) -> NoReturn:
        try:
            linux.die_with_parent(signal.SIGKILL, parent)
            self.prepare(ours)
            while order := ours.recv(1 << 16):
                try:
                    result = self._act(*pickle.loads(order))
                except Exception as error:
                    result = error
                ours.send(pickle.dumps(result))
        finally:
            os._exit(0)
