"""Whether anybody else has a file open: the kernel knows, and says so by refusing a lease.

A write lease is granted only if no other open file description refers to the file, of whatever process, user or
namespace; a mapping counts too (fcntl(2), F_SETLEASE). While we hold the lease, whoever opens the file has to wait. NFS
and FUSE have no leases: there we look in /proc, which does not show everything to everybody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.host.memory.process_maps import read_maps
from parallel_fixedram.host.processes.unseen import why_proc_is_wrong


def who_has_open(fd: int) -> str:
    """Who else has the file open or mapped; empty if nobody has.

    On file systems with leases, empty also means that nobody can open it until ``fd`` is closed.

    Args:
        fd: a regular file, open for reading.

    Raises:
        HostError: it cannot be told.
    """
    alone = _gets_lease(fd)
    if alone:
        return ""
    seen, unseen = ([], True) if why_proc_is_wrong() else _processes_with(fd)
    if seen:
        return f"process {seen[0]} ({_name(seen[0])}) has it open"
    if alone is False:
        return "a process that cannot be seen from here has it open"
    if unseen:
        raise HostError("cannot tell whether a process has it open", hint="root can")
    return ""


def _gets_lease(fd: int) -> bool | None:
    """Whether the kernel gives us a write lease; None if this file system has no leases."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # tells us of others' opens; the default, SIGIO, would kill us
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EBUSY) else None
    return True


def _processes_with(fd: int) -> tuple[list[int], bool]:
    """Processes that have the file open, ours by another descriptor; and whether some could not be examined."""
    status, found, unseen = os.fstat(fd), list[int](), False
    own = f"/proc/{os.getpid()}/fd/{fd}"
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if _has_open(pid, status, own) or _maps(pid, status):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
        except (OSError, FixedRamError):
            unseen = unseen or os.path.exists(f"/proc/{pid}")
    return found, unseen


def _has_open(pid: int, status: os.stat_result, own: str) -> bool:
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            path = f"/proc/{pid}/fd/{number}"
            if path != own and os.path.samestat(os.stat(path), status):
                return True
    return False


def _maps(pid: int, status: os.stat_result) -> bool:
    return any((each.device, each.inode) == (status.st_dev, status.st_ino) for each in read_maps(pid))


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return "".join(each if each.isprintable() else "?" for each in file.read().strip())
    except OSError:
        return "?"
