"""What identifies a process later on: its pid alone may be that of another process by then."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import forked
from parallel_fixedram.host.processes.unseen import why_proc_is_wrong

_BOOT = "/proc/sys/kernel/random/boot_id"
_START_FIELD = 19  # of those after the name: starttime (Linux: man 5 proc_pid_stat)


class Whereabouts(Enum):
    """Why a process cannot be reached."""

    ENDED = "ended"
    ELSEWHERE = "elsewhere"
    """Its pid belongs to another pid namespace, so we cannot tell from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """Identifies a process uniquely."""

    pid: int
    started: int
    """When it started, in clock ticks since the system was booted."""
    boot: str
    """The boot id of that time."""
    namespace: str
    """The pid namespace that ``pid`` belongs to."""

    def reach(self) -> int | Whereabouts:
        """A pidfd of the process, which the caller closes, if it is alive; otherwise why it cannot be reached.

        Raises:
            HostError: /proc does not tell, or there are no descriptors left.
        """
        require_proc()
        if self.boot != _boot():
            return Whereabouts.ENDED
        if self.namespace != _namespace():
            return Whereabouts.ELSEWHERE
        try:
            pidfd = os.pidfd_open(self.pid)  # before looking, so that it cannot come to mean another process
        except ProcessLookupError:
            return Whereabouts.ENDED
        except OSError as error:
            raise HostError.from_os(f"cannot look at process {self.pid}", error) from error
        try:
            if _start(self.pid) == self.started and not forked.has_ended(pidfd):
                return pidfd
        except (FileNotFoundError, ProcessLookupError):
            pass
        except OSError as error:
            linux.close(pidfd)
            raise HostError.from_os(f"cannot look at process {self.pid}", error) from error
        linux.close(pidfd)
        return Whereabouts.ENDED


def identity_of(pid: int) -> ProcessIdentity:
    """The identity of a process that is alive.

    Raises:
        HostError: it has ended, or /proc does not tell.
    """
    require_proc()
    try:
        return ProcessIdentity(pid=pid, started=_start(pid), boot=_boot(), namespace=_namespace())
    except OSError as error:
        raise HostError.from_os(f"cannot look at process {pid}", error) from error


def own_memory(pid: int) -> int:
    """Bytes of memory that a process takes, not counting what it maps from files.

    Raises:
        OSError: it has ended, or /proc does not tell.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        found = dict(line.split(":", 1) for line in status)
    return sum(int(found[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem") if name in found)


def require_proc() -> None:
    """Check that /proc shows our processes.

    Raises:
        HostError: there is no /proc, or it is that of another pid namespace.
    """
    if wrong := why_proc_is_wrong():
        reason, hint = wrong
        raise HostError(f"cannot tell which processes are alive: {reason}", hint=hint)


def _start(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[_START_FIELD])  # a name may contain anything


def _boot() -> str:
    with open(_BOOT, encoding="ascii") as file:
        return file.read().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
