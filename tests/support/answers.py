"""A QEMU in this very process: what it is asked is answered at once, by what a real one said, but for one message.

::

    Monitor --send--> Asked, a socket --> answers --> its other end      nobody waits, and no process is needed
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from support.fake_qmp import GREETING, line

from parallel_fixedram.machines.qemu.monitor import Monitor

Alter = Callable[[dict[str, Any]], bytes]
"""What is sent instead of a message."""


class Asked(socket.socket):
    """Our end of a connection; whatever is sent through it is answered before ``send`` returns."""

    hear: Callable[[bytes], None]

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        self.hear(bytes(data))
        return len(data)


class Answering:
    """Answers of a QEMU, of which one message can be altered.

    Args:
        answers: by command and its arguments; of jobs, and of the event MIGRATION, only where they are strange.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers
        self.begin()
        self.monitor = self._connected()

    def begin(
        self,
        altered: int = -1,
        alter: Alter = line,
        *,
        repeats: bool = False,
        heard: Callable[[dict[str, Any]], None] = lambda message: None,
    ) -> None:
        """Have the message of that number altered from now on.

        Args:
            altered: counted from 0.
            alter: how.
            repeats: whether what it should have been follows it.
            heard: gets every message, before.
        """
        self._told, self._altered, self._alter, self._repeats, self._heard = 0, altered, alter, repeats, heard
        self._job, self._jobs = "job", self._states()

    def again(self) -> None:
        """Be there for the next question, whatever became of the session."""
        try:
            self.begin()
            self.monitor.execute("query-status")
        except Exception:
            self.close()
            self.monitor = self._connected()

    def close(self) -> None:
        self.monitor.close()
        self._theirs.close()

    def _connected(self) -> Monitor:
        ours, self._theirs = socket.socketpair()
        ours.setblocking(False)
        asked = Asked(fileno=ours.detach())
        asked.hear = self._hear
        self._theirs.sendall(GREETING)
        return Monitor("qmp", sock=asked, timeout=20.0)

    def _hear(self, data: bytes) -> None:
        request = json.loads(data)
        for message in self._messages(request["execute"], request.get("arguments", {})):
            whole = message if "event" in message else {**message, "id": request["id"]}
            altered = self._told == self._altered
            self._told += 1
            self._heard(whole)
            try:
                if altered:
                    self._theirs.sendall(self._alter(whole))
                if self._repeats or not altered:
                    self._theirs.sendall(line(whole))
            except OSError:  # it was the last one
                return

    def _messages(self, command: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if command == "migrate-incoming":
            for status in ("setup", "active", "completed", "completed"):
                yield {"event": "MIGRATION", "data": self._answers.get("MIGRATION", {"status": status})}
        if command == "block-commit":
            self._job = arguments["job-id"]
        if command == "query-jobs":
            yield {"event": "JOB_STATUS_CHANGE", "data": {"status": "running", "id": self._job}}
            yield {"return": self._answers["query-jobs"] or [{"id": self._job, **next(self._jobs)}]}
            return
        which = " ".join([command, *(str(each) for each in arguments.values() if isinstance(each, str))])
        yield {"return": self._answers.get(which, {})}

    @staticmethod
    def _states() -> Iterator[dict[str, Any]]:
        for at, status in zip(count(0, 65536), ("created", "running", "ready", "running"), strict=False):
            yield {"status": status, "current-progress": at, "total-progress": 1 << 20}
        while True:
            yield {"status": "concluded", "current-progress": 1 << 20, "total-progress": 1 << 20, "error": ""}
