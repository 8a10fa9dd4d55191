"""Child: a helper process of a snapshot, and how the coordinator talks to it."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
from collections.abc import Callable
from typing import NoReturn

from parallel_fixedram.core.errors import FixedRamError, HostError, WorkerError
from parallel_fixedram.engine.capture.snapshot.messages import Answer, Command, Failed, receive, send
from parallel_fixedram.host.processes import forked, signals


class Child:
    """A process that is forked by the constructor, and dies with the thread that made it.

    Args:
        name: what it does, to follow "the process that".
        run: what it runs, given its end of a socket to us.

    Attributes:
        pid: process id; 0 once it was reaped.
        pidfd: its pidfd.

    Raises:
        HostError: no process could be started.
    """

    def __init__(self, name: str, run: Callable[[socket.socket], None]) -> None:
        self._name = name
        self.pid, self.pidfd = 0, -1
        self._how = "has ended"
        coordinator = os.getpid()
        try:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    # a signal between these lines would leave a process that nobody knows of
                    with signals.held():
                        pid = os.fork()
                        if pid == 0:
                            self._socket.close()
                            _live(run, theirs, coordinator)
                        self.pid = pid
                    self.pidfd = os.pidfd_open(pid)
                except BaseException:
                    self.close()
                    raise
        except OSError as error:
            raise HostError.from_os(f"cannot start the process that {name}", error) from error

    def tell(self, command: Command) -> None:
        """Send a command; if the process is gone, ``answer`` will report that."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self._socket, command)

    def has_answer(self, seconds: float) -> bool:
        """Whether ``answer`` would return without waiting, now or within this many seconds."""
        poll = select.poll()  # not select(): a descriptor may be beyond 1024
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def answer(self, seconds: float) -> Answer:
        """The next answer.

        Raises:
            WorkerError: it does not come within this many seconds, or the process has ended.
            FixedRamError: the error with which the process failed.
        """
        if not self.has_answer(seconds):
            raise WorkerError(f"the process that {self._name} does not answer")
        try:
            answer = receive(self._socket)
        except EOFError:
            raise WorkerError(f"the process that {self._name} {self._end()}") from None
        if isinstance(answer, Failed):
            raise answer.error
        assert not isinstance(answer, Command | None)
        return answer

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or ends within this many seconds."""
        return self.pid == 0 or forked.has_ended(self.pidfd, seconds)

    def close(self) -> None:
        """End the process; may be called more than once."""
        self._socket.close()
        if self.pid:
            forked.kill(self.pid)
            self._end()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _end(self) -> str:
        if self.pid:
            pid, self.pid = self.pid, 0
            self._how = forked.reap(pid)
        return self._how


def _live(run: Callable[[socket.socket], None], connection: socket.socket, coordinator: int) -> NoReturn:
    code = 1
    try:
        forked.settle_in(coordinator)
        gc.freeze()  # collecting what was inherited would copy all of it
        gc.disable()
        run(connection)
        code = 0
    except EOFError:
        pass  # the coordinator is gone
    except FixedRamError as error:
        with contextlib.suppress(OSError):
            send(connection, Failed(error))
    except BaseException as error:
        with contextlib.suppress(OSError):
            send(connection, Failed(WorkerError.from_any("a process of the snapshot failed", error)))
    finally:
        os._exit(code)
