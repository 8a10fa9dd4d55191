"""Monitor: commands for a QEMU through QMP, one blocking call at a time."""

from __future__ import annotations

import logging
import os
import pwd
import socket
import struct
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import MachineError, os_message
from parallel_fixedram.core.words import shown
from parallel_fixedram.host.processes import signals
from parallel_fixedram.machines.qemu.events import Events, listen
from parallel_fixedram.machines.qemu.session import Session, TimedOut

TIMEOUT_SECONDS = 30.0
"""How long QEMU may take to answer, by default."""

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

_log = logging.getLogger(__name__)


class Monitor(Closing):
    """A QMP session; use it as a context manager, or ``close`` it.

    Calls may come from any thread, but never two at once, and not from inside a running event loop. The session
    survives error answers, time-outs and exceptions from signal handlers (a late answer is dropped); once it is lost,
    every call reports that.

    Args:
        path: QEMU's QMP socket; with ``sock``, the name of the other end.
        timeout: seconds, for calls without a time-out of their own.
        greeting_timeout: seconds for the greeting, which does not come while another client is connected; None for
            ``timeout``.
        pidfd: descriptor of QEMU's process: if that ends, so do calls. The caller closes it, after the session.
        sock: an existing connection; closed with the session.
        kind: kind of the other end, for messages.

    Attributes:
        name: ``path``, for messages.
        version: QEMU's, as major, minor, micro.

    Raises:
        MachineError: nobody listens there, or whoever does speaks no QMP, or is busy with another client.
    """

    def __init__(
        self,
        path: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        greeting_timeout: float | None = None,
        pidfd: int | None = None,
        sock: socket.socket | None = None,
        kind: str = "QMP socket",
    ) -> None:
        self.name = path
        self._greeting_timeout = greeting_timeout
        with ExitStack() as stack:
            with signals.held():
                sock = stack.enter_context(_connect(path) if sock is None else sock)
                self._session = stack.enter_context(Session(sock, path, timeout, pidfd, kind))
            self.version = self._greet()
            _log.debug("%s %r: QEMU %d.%d.%d, process %d", kind, self.name, *self.version, self.peer_pid)
            stack.pop_all()

    @property
    def sock(self) -> socket.socket:
        """The connected socket, non-blocking; closed with the session."""
        return self._session.sock

    @property
    def pidfd(self) -> int | None:
        """As given; it may be set later, when the process is known."""
        return self._session.loop.pidfd

    @pidfd.setter
    def pidfd(self, fd: int | None) -> None:
        self._session.loop.pidfd = fd

    @property
    def peer_pid(self) -> int:
        """The process that made the listening socket, at that time; 0 if it cannot be seen from here."""
        pid: int = _PEER.unpack(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        return pid

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        fd: int | None = None,
    ) -> Any:
        """Execute a command, and return what it returns.

        Args:
            command: name of the command.
            arguments: by their names in QMP; anything that JSON can encode.
            timeout: seconds; None for the session's.
            fd: a descriptor to send with the command.

        Raises:
            MachineError: QEMU refuses, ends, does not answer in time, or not in QMP. Only if it refuses is it certain
                that the command was not executed.
        """
        return self._session.execute(command, arguments, timeout, fd)

    def hmp(self, line: str) -> str:
        """Execute a command of the human monitor, and return what it prints, errors included.

        Raises:
            MachineError: as for ``execute``.
        """
        printed = self.execute("human-monitor-command", {"command-line": line})
        if not isinstance(printed, str):
            raise self.malformed("human-monitor-command", printed)
        return printed

    def listen(self, *names: str, ignored: Collection[str] = ()) -> AbstractContextManager[Events]:
        """Keep events until the block is left, so that none is lost between a command and the wait for its event.

        Args:
            names: which events; all of them if none is given.
            ignored: names of events not to keep.

        Raises:
            MachineError: the session is lost.
        """
        return listen(self._session, names, ignored)

    def error(self, text: str) -> MachineError:
        """An error that names the other end."""
        return self._session.error(text)

    def malformed(self, command: str, answer: object) -> MachineError:
        """An error for an answer that is not as QEMU documents it."""
        return self.error(f"QEMU's answer to {command!r} is malformed: {shown(str(answer))}")

    def close(self) -> None:
        """End the session within seconds, whatever its state; may be called more than once."""
        self._session.close()

    def _greet(self) -> tuple[int, int, int]:
        """Wait for the greeting and answer it; returns QEMU's version."""
        client = self._session.client
        try:
            self._session.run("no greeting", self._greeting_timeout, self._session.connect)
        except TimedOut as error:
            hint = "another client is connected to this socket, or it is not a QMP socket"
            raise MachineError(error.message, hint=hint) from None
        except MachineError as error:
            raise MachineError(error.message, hint=_hint(error.message)) from error.__cause__
        self.execute("qmp_capabilities")
        found = client.greeting.QMP.version.get("qemu") if client.greeting else None
        numbers = [found.get(name) for name in ("major", "minor", "micro")] if isinstance(found, dict) else []
        match numbers:
            case [int(major), int(minor), int(micro)]:
                return major, minor, micro
        raise self._session.error(f"the greeting has no version of QEMU: {shown(str(found))}")


def _hint(message: str) -> str:
    """What to do if something other than a greeting came."""
    if "pretty=on" in message:
        return "start QEMU with a monitor without it: -qmp unix:PATH,server=on,wait=off"
    if "what came instead is not JSON" in message:
        return "this is not a QMP socket but a human monitor, a serial line or the like: use the path given to -qmp"
    return ""


def _owner(path: str) -> str:
    """Who owns a socket, or its folder if that hides it; to be appended to a reason."""
    while True:
        try:
            uid = os.stat(path).st_uid
            break
        except OSError:
            path = os.path.dirname(os.path.abspath(path))
    try:
        name = repr(pwd.getpwuid(uid).pw_name)
    except KeyError:
        name = str(uid)
    return f" ({path!r} belongs to user {name})"


def _connect(path: str) -> socket.socket:
    """Connect to a socket without waiting.

    Raises:
        MachineError: it is not possible.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except OSError as error:
        sock.close()
        reason = os_message(error.errno) if error.errno else shown(str(error))
        hint = "give the PATH of a QEMU that runs with -qmp unix:PATH,server=on,wait=off"
        if isinstance(error, PermissionError):
            reason += _owner(path)
            hint = "run as that user, or as root"
        if isinstance(error, BlockingIOError):
            hint = "other clients are waiting for this socket"
        raise MachineError(f"cannot connect to QMP socket {path!r}: {reason}", hint=hint) from error
    return sock
