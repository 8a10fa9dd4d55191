"""Serial: the guest's serial line, through a pair of named pipes.

Pipes rather than a socket, because a pipe takes a guest's single letters without a buffer of its own for each: a guest
that nobody listens to for a while is not held up.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import time
from pathlib import Path

from support.qemu_monitor import QemuDied

PIPE_SIZE = 1 << 20


class Serial:
    """What the guest prints, in order; what was waited for is consumed.

    Args:
        folder: where the pipes are made; QEMU gets ``folder/serial`` as the path of a ``pipe`` chardev.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "serial"
        self.text = ""
        """Everything so far."""
        self._consumed = 0
        ends = []
        for suffix, mode in ((".out", os.O_RDONLY), (".in", os.O_RDWR)):
            name = f"{self.path}{suffix}"
            os.mkfifo(name)
            ends.append(os.open(name, mode | os.O_NONBLOCK | os.O_CLOEXEC))
        self._from_guest, self._to_guest = ends
        fcntl.fcntl(self._from_guest, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def wait(self, pattern: str, timeout: float, pidfd: int) -> re.Match[str]:
        """Wait until ``pattern`` matches what was not consumed yet, and consume it up to the end of the match.

        Raises:
            TimeoutError: it does not come.
            QemuDied: and it cannot come any more.
        """
        expression = re.compile(pattern)
        poll = select.poll()
        poll.register(self._from_guest, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + timeout
        alive = True
        while True:
            self._receive()
            if found := expression.search(self.text, self._consumed):
                self._consumed = found.end()
                return found
            rest = f"no {pattern!r} on the serial line, last was {self.text[-200:]!r}"
            if not alive:
                raise QemuDied(rest)
            events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not events:
                raise TimeoutError(f"{rest} (after {timeout} s)")
            alive = all(fd != pidfd for fd, _ in events)

    def take(self) -> str:
        """What came and was not consumed yet, without waiting."""
        self._receive()
        rest, self._consumed = self.text[self._consumed :], len(self.text)
        return rest

    def send(self, line: str) -> None:
        os.write(self._to_guest, f"{line}\n".encode())

    def close(self) -> None:
        os.close(self._from_guest)
        os.close(self._to_guest)

    def _receive(self) -> None:
        try:
            while data := os.read(self._from_guest, 1 << 16):
                self.text += data.decode("latin-1")
        except BlockingIOError:
            pass
