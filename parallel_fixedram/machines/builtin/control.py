"""Control: the built-in guest's process, and the socket with its commands (``child.py`` describes them)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import NoReturn

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.host.processes import forked, signals
from parallel_fixedram.machines.builtin import child

ANSWER_SECONDS = 30.0
"""How long an answer may take that is sent immediately."""


class Control:
    """A forked process; ``close`` ends it.

    Args:
        live: what the process does, given its end of the socket and its parent's process id.

    Attributes:
        pid: its process id; -1 when it is gone.

    Raises:
        OSError: the process or the socket cannot be made.
    """

    def __init__(self, live: Callable[[socket.socket, int], NoReturn]) -> None:
        self.pid = self._sequence = 0
        self._socket, socket_of_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with socket_of_child:
            try:
                # a signal between these lines would leave a process that nobody knows of
                with signals.held():
                    self.pid = os.fork()
                    if self.pid == 0:
                        live(socket_of_child, parent)
            except BaseException:
                self.close()
                raise

    def wait_until_booted(self, filled: Callable[[int], None]) -> int:
        """Wait for the first answer, and return its steps; ``filled`` is told the number of pages written so far.

        Raises:
            MachineError: it died or failed.
            HostError: it failed, and the host is to blame.
        """
        return self._answer(None, filled)

    def ask(self, command: bytes, number: int, seconds: float | None = None) -> int:
        """Send a command, and return the number of steps done when it is answered.

        Args:
            command: GO or HALT.
            number: of steps.
            seconds: how long the answer may take; None for no limit.

        Raises:
            MachineError: it died or failed, or does not answer in time.
            HostError: it failed, and the host is to blame.
        """
        self._send(command, number)
        return self._answer(seconds, lambda _: None)

    def ask_for_userfaultfd(self) -> tuple[int, int]:
        """A userfaultfd of the process, as a descriptor, and the address of RAM in that process.

        Raises:
            MachineError: it died, or does not answer in time.
            HostError: it cannot get one.
        """
        self._send(child.WATCH, 0)
        while True:
            message, descriptors = self._receive(ANSWER_SECONDS)
            _, sequence, address = child.ANSWER.unpack(message)
            for fd in descriptors:
                os.set_inheritable(fd, False)
                if sequence == self._sequence:
                    return fd, address
                os.close(fd)  # from an earlier call that was interrupted
            if sequence == self._sequence:
                raise HostError("there is no room for another descriptor", errno=errno.EMFILE)

    def close(self) -> None:
        """End the process; may be called more than once."""
        if self.pid > 0:
            forked.kill(self.pid)
            forked.reap(self.pid)
            self.pid = -1
        self._socket.close()

    def _send(self, command: bytes, number: int) -> None:
        if self.pid <= 0:
            raise MachineError("the guest's process is gone")
        self._sequence += 1
        try:
            self._socket.send(child.COMMAND.pack(command, self._sequence, number))
        except OSError:
            raise MachineError(self._death()) from None

    def _answer(self, seconds: float | None, filled: Callable[[int], None]) -> int:
        while True:
            message, descriptors = self._receive(seconds)
            for fd in descriptors:  # a userfaultfd that nobody waited for
                os.close(fd)
            kind, sequence, number = child.ANSWER.unpack(message)
            if kind == child.FILLED:
                filled(int(number))
            elif sequence == self._sequence:  # an older answer was interrupted before it was read
                return int(number)

    def _receive(self, seconds: float | None) -> tuple[bytes, list[int]]:
        """The next answer, and the descriptors that came with it."""
        self._socket.settimeout(seconds)
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, child.MESSAGE_BYTES, 1)
        except TimeoutError:
            raise MachineError(f"guest process {self.pid} did not answer within {seconds:g} s") from None
        except OSError:
            message = b""
        if not message:
            raise MachineError(self._death())
        if message[:1] in (child.FAILED, child.HOST_FAILED):
            raise self._failure(message)
        return message, descriptors

    def _failure(self, message: bytes) -> FixedRamError:
        """The error by which the guest explains its end."""
        kind, number = child.FAILURE.unpack_from(message)
        text = f"guest process {self.pid} failed: {message[child.FAILURE.size :].decode('utf-8', 'replace')}"
        if kind == child.FAILED:
            return MachineError(text)
        error = HostError(text)
        error.errno = number
        return error

    def _death(self) -> str:
        """How the process ended; it has, if its end of the socket is closed."""
        pid, self.pid = self.pid, -1
        return f"guest process {pid} {forked.reap(pid)}"
