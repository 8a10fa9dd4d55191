"""Monitor: what can be asked of a QEMU through QMP, one blocking call at a time."""

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
"""How long QEMU may take for an answer, if the caller does not say."""

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

_log = logging.getLogger(__name__)


class Monitor(Closing):
    """A QMP session; use it as a context manager, or ``close`` it.

    Calls may come from any thread, but never two at once, and not from inside a running event loop. After an error
    answer, a time-out or an exception out of a signal handler the session goes on (an answer that comes late is
    dropped); once it is lost, every call says so.

    Args:
        path: QEMU's QMP socket; with ``sock``, what the other end is called.
        timeout: seconds for every call that is not given its own.
        greeting_timeout: seconds for the greeting, which does not come while another client is attached; None for
            ``timeout``.
        pidfd: descriptor of QEMU's process; its end ends every call. Stays the caller's to close, after the session.
        sock: a connection that is there already; closed with the session.
        kind: what the other end is, for messages.

    Attributes:
        name: ``path``, for messages.
        version: QEMU's, as major, minor, micro.

    Raises:
        MachineError: nobody listens there, or it does not speak QMP, or not with us now.
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
        """As given; may be set later, when ``peer_pid`` has told whose to open."""
        return self._session.loop.pidfd

    @pidfd.setter
    def pidfd(self, fd: int | None) -> None:
        self._session.loop.pidfd = fd

    @property
    def peer_pid(self) -> int:
        """Process that made the listening socket, as of then; 0 if it is not visible from here."""
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
        """Have a command carried out, and return what it returns.

        Args:
            command: name of the command.
            arguments: under QMP's own names; what JSON can say.
            timeout: seconds; None for the session's.
            fd: a descriptor that goes with the command.

        Raises:
            MachineError: QEMU refuses, ends, does not answer in time or not in QMP. Only after a refusal it is
                certain that the command was not carried out.
        """
        return self._session.execute(command, arguments, timeout, fd)

    def hmp(self, line: str) -> str:
        """Have a command of the human monitor carried out, and return what it prints; errors are printed, too.

        Raises:
            MachineError: as for ``execute``.
        """
        printed = self.execute("human-monitor-command", {"command-line": line})
        if not isinstance(printed, str):
            raise self.malformed("human-monitor-command", printed)
        return printed

    def listen(self, *names: str, ignored: Collection[str] = ()) -> AbstractContextManager[Events]:
        """Keep events from now on until the block is left: none is lost between command and wait.

        Args:
            names: of the events; all of them without any.
            ignored: names of events that are not kept.

        Raises:
            MachineError: the session is lost.
        """
        return listen(self._session, names, ignored)

    def error(self, text: str) -> MachineError:
        """An error that names the other end."""
        return self._session.error(text)

    def malformed(self, command: str, answer: object) -> MachineError:
        """What to raise when an answer is not what QEMU's documents say."""
        return self.error(f"QEMU's answer to {command!r} is malformed: {shown(str(answer))}")

    def close(self) -> None:
        """End the session, whatever state it is in, within seconds; more than once does no harm."""
        self._session.close()

    def _greet(self) -> tuple[int, int, int]:
        """Wait for the greeting and answer it; returns QEMU's version."""
        client = self._session.client
        try:
            self._session.run("no greeting", self._greeting_timeout, self._session.connect)
        except TimedOut as error:
            hint = "another client is attached to this socket, or it is not a QMP socket"
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
    """What to do where something else than a greeting came."""
    if "pretty=on" in message:
        return "give QEMU a monitor without it: -qmp unix:PATH,server=on,wait=off"
    if "what came instead is not JSON" in message:
        return "this is not a QMP socket, but a human monitor, a serial line or something else: it takes that of -qmp"
    return ""


def _owner(path: str) -> str:
    """Whose a socket is, to follow a reason; or its folder, where that hides it."""
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
    """Connect to a socket without waiting for anyone.

    Raises:
        MachineError: it cannot be.
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
