"""Bridge: a process that speaks QMP to us and uses libvirt's API, so that to us a domain is a QEMU like any other.

::

    us ---- QMP, a socket pair ---- bridge ---- libvirt's API ---- libvirtd ---- QEMU

A call of libvirt's library takes as long as QEMU does, and nothing interrupts it; and libvirt's connections do not
survive a fork, by which workers are made. With a process of its own neither matters: we only wait for a socket. The
process ends when we do.
"""

from __future__ import annotations

import json
import os
import select
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
"""How long opening the connection to libvirt may take."""

_GOODBYE_SECONDS = 1.0


class Bridge(Closing):
    """The process; a context manager.

    Args:
        uri: of the connection to libvirt.
        name: name or UUID of a running domain.

    Attributes:
        sock: speaks QMP, and the additional commands of own_commands.py.
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
            # before the fork, so that it cannot come to mean another process
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
        """The process's first line: what it has opened, or why it could not."""
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
        """End the process, which first takes our descriptors back from QEMU; may be called more than once."""
        self.sock.close()
        if self._pid:
            pid, self._pid = self._pid, 0
            if self.pidfd < 0 or not forked.has_ended(self.pidfd, _GOODBYE_SECONDS):  # QEMU or libvirt hangs
                forked.kill(pid)
            forked.reap(pid)
            if self.pidfd >= 0:
                os.close(self.pidfd)


def _run(uri: str, name: str, sock: socket.socket, us: int) -> NoReturn:
    """The body of the process."""
    try:
        forked.stand_alone({sock.fileno(), us})
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
    """End the process soon after ours has ended, even if it waits for libvirt; until then it may tidy up."""
    poll = select.poll()
    poll.register(us, select.POLLIN)
    poll.poll()
    threading.Event().wait(_GOODBYE_SECONDS)
    os._exit(1)
