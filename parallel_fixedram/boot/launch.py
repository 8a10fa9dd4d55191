"""Launch: a QEMU started by us. Either it is handed over running, or it vanishes without a trace except its log.

The process has a session of its own: it lives on when we are done, and is killed if we end before that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self

from parallel_fixedram.boot.last_words import end_all, how_it_ended, last_words
from parallel_fixedram.boot.run_folder import RunFolder, new_record
from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import HostError, MachineError, RequestError, os_message
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.handed_over import give_to
from parallel_fixedram.host.processes import forked, signals
from parallel_fixedram.host.processes.identity import identity_of

ENDING_SECONDS = 1.0
"""How long a process that has closed its monitor may take to be gone."""

_MAX_SOCKET_PATH = 107
_CHARDEV = "parallel-fixedram"
_RESET = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launch:
    """Context manager around a QEMU; it is killed, and its folder removed, unless ``let_go`` is called.

    Args:
        arguments: program and arguments; the program may be a wrapper that runs QEMU.
        folder: where socket, log and pid go; must not exist.
        descriptors: open files that QEMU inherits under the same numbers.
        files: contents of other files to make for it, in the folder or elsewhere, by path; removed with the folder.

    Attributes:
        program: what is run.
        pid: QEMU's process id; until ``found`` is called, that of the process that was started.
        pidfd: becomes readable when ``pid`` ends.
        files: as given.

    Raises:
        RequestError: the folder exists, or its name is too long for a socket.
        HostError: the program cannot be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: str,
        *,
        descriptors: Collection[int] = (),
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        self.program = arguments[0]
        self._arguments = list(arguments)
        self._folder = RunFolder(folder)
        self.socket_path, self.log_path = self._folder.socket, self._folder.log
        self._descriptors = descriptors
        self.files = files
        self.pid = self.pidfd = 0
        self._started = 0
        self._made = self._found = False

    @undone_if_it_fails
    def __enter__(self) -> Self:
        if len(os.fsencode(self.socket_path)) > _MAX_SOCKET_PATH:
            raise RequestError(
                f"{self.socket_path!r} is too long for the name of a socket",
                hint=f"it may have {_MAX_SOCKET_PATH} bytes: give --run-dir a folder with a shorter name",
            )
        with signals.held():
            self._folder.make()
            self._made = True
            self._folder.add(self.files)
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._started, signal.SIGKILL)  # a session of its own is also a group
            if self.pid != self._started or not self._found:  # with a wrapper it may have left the group
                end_all(self._folder.path)
            forked.reap(self._started)
            self._started = self.pid = 0
        self._close()
        if self._made:
            self._folder.remove()
            self._made = False

    def write_record(self, file: str) -> None:
        """Record that this QEMU lives on, and from which file it was started.

        Raises:
            HostError: it has ended, or the record cannot be written.
        """
        self._folder.write_record(new_record(identity_of(self.pid), file))

    def let_go(self) -> None:
        """Let QEMU live on by itself, with its folder; this process stays its parent until it ends."""
        with signals.held():
            self._close()
            self._started = self.pid = 0
            self._made = False

    def found(self, pid: int) -> None:
        """Note which process is QEMU; what was started may be a wrapper around it.

        Raises:
            MachineError: it has ended.
            HostError: its files cannot be given to the user that it acts as.
        """
        if pid != self.pid:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                raise MachineError(f"process {pid} has ended") from error
            self._close()
            self.pid, self.pidfd = pid, pidfd
            self._folder.write_pid(self.pid)
        self._found = True
        for path in self.files:  # QEMU may have given up rights by now (-run-with user=), and reopens them for writing
            give_to(self.pid, path)

    def explained(self, error: MachineError) -> MachineError:
        """Add to an error what QEMU printed last, and how it ended if it has; its log stays.

        If QEMU has exited by itself and printed why, that is the whole message.
        """
        how = self._how_it_ended()
        said = last_words(self.log_path, self.program, ended=bool(how))
        if not how:
            message = f"{error.message}; QEMU: {said}" if said else error.message
        elif said:
            message = f"QEMU: {said}" if how.startswith("exited") else f"{self.program!r} {how}; QEMU: {said}"
        else:
            message = f"{error.message}; {self.program!r} {how} and printed nothing"
        hints = [error.hint if not how else "", self._folder.keep_log()]
        return MachineError(message, hint="; ".join(filter(None, hints)))

    def explanation(self) -> str:
        """Why QEMU ended, as one line that it printed; empty if it is alive, or printed nothing."""
        said = last_words(self.log_path, self.program, ended=True) if self.has_ended() else ""
        return f"QEMU: {said}" if said else ""

    def has_ended(self) -> bool:
        """Whether the process has ended, or does so within a second, as one that has closed its monitor will."""
        return forked.has_ended(self.pidfd, ENDING_SECONDS)

    def _how_it_ended(self) -> str:
        """How QEMU ended, as the end of a sentence; empty if it is alive."""
        if not self.has_ended():
            return ""
        return how_it_ended(self._started) if self.pid == self._started else "has ended"

    def _close(self) -> None:
        if self.pidfd:
            linux.close(self.pidfd)
            self.pidfd = 0

    def _start(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
                listener.bind(self.socket_path)
                listener.listen()  # before QEMU is there, so that we need not try again and again
                self._started = _spawn(self._arguments, listener.fileno(), self.log_path, self._descriptors)
            self.pid = self._started
            self.pidfd = os.pidfd_open(self.pid)
            self._folder.write_pid(self.pid)
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise RequestError(f"cannot run {self._arguments[0]!r}: {os_message(error.errno or 0)}") from error
        except OSError as error:
            raise HostError.from_os(f"cannot start {self._arguments[0]!r}", error) from error


def _spawn(arguments: Sequence[str], listener: int, log_path: str, descriptors: Collection[int]) -> int:
    """Start a QEMU in a session of its own, with a monitor on a socket that listens already; returns its process id.

    Raises:
        OSError: it cannot be started.
    """
    monitor = [
        *("-chardev", f"socket,id={_CHARDEV},fd={listener},server=on,wait=off"),
        *("-qmp", f"chardev:{_CHARDEV}"),  # accepted by every QEMU: -mon is deprecated in 11.1
    ]
    return os.posix_spawnp(
        arguments[0],
        [*arguments, *monitor],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in {listener, *descriptors}),  # onto itself: makes it inheritable
        ],
        setsid=True,
        setsigdef=_RESET,
    )
