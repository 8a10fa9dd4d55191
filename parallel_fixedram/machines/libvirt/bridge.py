"""Bridge: a process that speaks QMP to us and libvirt's API to libvirt, so that a domain is a QEMU like any other.

::

    us ---- QMP, a socket pair ---- bridge ---- libvirt's API ---- libvirtd ---- QEMU

A call of libvirt's library waits for as long as QEMU takes, and nothing interrupts it; a connection does not survive
a fork, which workers are made by. In a process of its own neither matters: what we wait for is a socket. The process
ends when we do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.host.processes import forked, signals
from parallel_fixedram.machines.libvirt.library import as_failure, from_failure, open_domain, refuse_unsuitable
from parallel_fixedram.machines.libvirt.own_commands import own_commands
from parallel_fixedram.machines.libvirt.speaker import Speaker

OPEN_SECONDS = 30.0
"""How long libvirt may take to let us in."""

_GOODBYE_SECONDS = 1.0
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


class Bridge(Closing):
    """The process; a context manager.

    Args:
        uri: of the connection to libvirt.
        name: of a domain that runs, or its UUID.

    Attributes:
        sock: speaks QMP, once this is made, and what own_commands.py has beyond that.
        name: of the domain.
        uuid: of the domain.
        pidfd: descriptor of the process.

    Raises:
        HostError: no process could be started, or libvirt's library is missing.
        MachineError: libvirt cannot be reached, has no such domain, or it cannot be saved now.
    """

    def __init__(self, uri: str, name: str) -> None:
        self._pid, self.pidfd = 0, -1
        self.sock, theirs = socket.socketpair()
        try:
            us = os.pidfd_open(os.getpid())
            try:
                with signals.held():
                    pid = os.fork()
                    if pid == 0:
                        _run(uri, name, theirs, us)
                    self._pid = pid
            finally:
                os.close(us)
                theirs.close()
            self.pidfd = os.pidfd_open(pid)
            opened = self._opened()
        except OSError as error:
            self.close()
            raise HostError.from_os("cannot start the process that speaks to libvirt", error) from error
        except BaseException:
            self.close()
            raise
        self.name, self.uuid = opened["name"], opened["uuid"]

    def _opened(self) -> Mapping[str, str]:
        """The first line that it says: what it has opened, or why not."""
        line = b""
        self.sock.settimeout(OPEN_SECONDS)
        while not line.endswith(b"\n"):
            try:
                data = self.sock.recv(1)  # what follows is QMP
            except TimeoutError:
                raise MachineError(f"libvirt did not answer within {OPEN_SECONDS:g} s") from None
            if not data:
                raise MachineError("the process that speaks to libvirt ended before it was ready")
            line += data
        self.sock.setblocking(False)
        found: dict[str, Any] = json.loads(line)
        if failure := found.get("failure"):
            raise from_failure(failure)
        return found

    def close(self) -> None:
        """End it, and what QEMU has of ours; more than once does no harm."""
        self.sock.close()
        if self._pid:
            pid, self._pid = self._pid, 0
            if self.pidfd < 0 or not forked.has_ended(self.pidfd, _GOODBYE_SECONDS):  # QEMU or libvirt hangs
                forked.kill(pid)
            forked.reap(pid)
            if self.pidfd >= 0:
                os.close(self.pidfd)


def _run(uri: str, name: str, sock: socket.socket, us: int) -> NoReturn:
    """The process."""
    try:
        for signum in _IGNORED:
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.setsid()
        forked.keep_only({sock.fileno(), us})
        threading.Thread(target=_end_after, args=(us,), daemon=True).start()
        try:
            opened = open_domain(uri, name, with_events=True)
            refuse_unsuitable(opened, name)
            first = {"name": opened.domain.name(), "uuid": opened.domain.UUIDString()}
            sock.sendall(json.dumps(first).encode() + b"\n")
            own = own_commands(opened)
            speaker = Speaker(opened, sock, own)
            speaker.greet()
            speaker.serve()
            own["libvirt-tidy"]({})
        except Exception as error:
            known = error if isinstance(error, FixedRamError) else HostError.from_any(f"domain {name!r}", error)
            sock.sendall(json.dumps({"failure": as_failure(known)}).encode() + b"\n")
    finally:
        os._exit(0)


def _end_after(us: int) -> None:
    """End the process when we have ended, even while it waits for libvirt; but let it tidy up before."""
    poll = select.poll()
    poll.register(us, select.POLLIN)
    poll.poll()
    threading.Event().wait(_GOODBYE_SECONDS)
    os._exit(1)
