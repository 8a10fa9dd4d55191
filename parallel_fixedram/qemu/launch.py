"""Launch: a QEMU started by us, to be handed over running, or to vanish without a trace.

::

    FOLDER/qmp   a socket that listens before QEMU starts, so that nobody has to wait for it to appear
    FOLDER/log   what QEMU prints
    FOLDER/pid

The process is a session of its own: it lives on when we are done, and dies if we end before that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import HostError, RequestError, os_message
from parallel_fixedram.host import linux, processes, signals

ENDING_SECONDS = 1.0
"""How long a process that has closed its monitor may take to be gone."""
MAX_EXPLANATION = 500

_MAX_SOCKET_PATH = 107
_CHARDEV = "parallel-fixedram"
_RESET = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launch:
    """Context manager around a QEMU; it is killed, and its folder removed, unless ``let_go`` is called.

    Args:
        arguments: program and arguments.
        folder: where socket, log and pid go; must not exist, made with mode 0700.
        descriptors: open files that QEMU shall have under the same numbers.

    Attributes:
        program: what is run.
        pid: its process id.
        pidfd: becomes readable when it ends.

    Raises:
        RequestError: the folder exists, or its name is too long for a socket.
        HostError: the program cannot be started.
    """

    def __init__(self, arguments: Sequence[str], folder: str, *, descriptors: Collection[int] = ()) -> None:
        self.program = arguments[0]
        self._arguments = list(arguments)
        self.folder = os.path.abspath(folder)
        self.socket_path = os.path.join(self.folder, "qmp")
        self.log_path = os.path.join(self.folder, "log")
        self._descriptors = descriptors
        self.pid = self.pidfd = 0
        self._made = False

    def __enter__(self) -> Self:
        if len(os.fsencode(self.socket_path)) > _MAX_SOCKET_PATH:
            raise RequestError(f"{self.socket_path!r} is too long for the name of a socket")
        try:
            with signals.held():
                self._make_folder()
                self._start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # a session of its own is also a group; a wrapper may be in it
            processes.reap(self.pid)
            self.pid = 0
        self._close()
        if self._made:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._made = False

    def let_go(self) -> None:
        """QEMU is on its own from now on, with its folder; its parent still is this process, until that ends."""
        with signals.held():
            self._close()
            self.pid, self._made = 0, False

    def explanation(self) -> str:
        """Why QEMU ended, as one line in its own words; empty if it lives, or has left none."""
        if not self.has_ended():
            return ""
        lines = [line for line in self._said() if not line.startswith("warning:")]
        return f"QEMU: {'; '.join(lines)}"[:MAX_EXPLANATION] if lines else ""

    def has_ended(self) -> bool:
        """Whether the process is no more; one that has closed its monitor is given a second."""
        return processes.has_ended(self.pidfd, ENDING_SECONDS)

    def _said(self) -> list[str]:
        try:
            with open(self.log_path, errors="replace") as log:
                text = log.read()
        except OSError:
            return []
        name = os.path.basename(self._arguments[0])
        return [line.strip().removeprefix(f"{name}: ") for line in text.splitlines() if line.strip()]

    def _close(self) -> None:
        if self.pidfd:
            linux.close(self.pidfd)
            self.pidfd = 0

    def _make_folder(self) -> None:
        try:
            os.mkdir(self.folder, 0o700)
        except FileExistsError as error:
            raise RequestError(f"{self.folder!r} exists") from error
        except OSError as error:
            raise HostError.from_os(f"cannot make {self.folder!r}", error) from error
        self._made = True

    def _start(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
                listener.bind(self.socket_path)
                listener.listen()
                monitor = [
                    *("-chardev", f"socket,id={_CHARDEV},fd={listener.fileno()},server=on,wait=off"),
                    *("-mon", f"chardev={_CHARDEV},mode=control"),
                ]
                passed = {listener.fileno(), *self._descriptors}
                log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self.pid = os.posix_spawnp(
                    self._arguments[0],
                    [*self._arguments, *monitor],
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, self.log_path, log, 0o600),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                        *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in passed),  # makes it inheritable
                    ],
                    setsid=True,
                    setsigdef=_RESET,
                )
            self.pidfd = os.pidfd_open(self.pid)
            with open(os.path.join(self.folder, "pid"), "w") as file:
                file.write(f"{self.pid}\n")
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise RequestError(f"cannot run {self._arguments[0]!r}: {os_message(error.errno or 0)}") from error
        except OSError as error:
            raise HostError.from_os(f"cannot start {self._arguments[0]!r}", error) from error
