""".part files: files that do not have their final name yet, each made by one writer, who holds a lock on it.

A .part file whose lock is free belongs to nobody and is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from parallel_fixedram.core.errors import HostError, unopened
from parallel_fixedram.host import linux

_MOST_TRIES = 8


def create(name: str, folder: int, path: str) -> int:
    """Make an empty file of mode 0600 and lock it; returns its descriptor.

    Args:
        name: its name in the folder.
        folder: descriptor of the folder.
        path: the final name, for messages.

    Raises:
        HostError: no file can be made in the folder, or another process is writing this one.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_MOST_TRIES):
        try:
            fd = os.open(name, flags, 0o600, dir_fd=folder)
        except FileExistsError:
            _remove_stale(name, folder, path)
            continue
        except OSError as error:
            raise unopened(f"cannot create {path!r}", error) from error
        try:
            os.fchmod(fd, 0o600)
            if try_lock(fd) and os.fstat(fd).st_nlink:  # else another writer took it for a leftover before we had it
                return fd
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
            linux.close(fd)
            raise HostError.from_os(f"cannot lock {path!r}", error) from error
        linux.close(fd)
    raise HostError(f"cannot create {path!r}: others keep taking {name!r}")


def _remove_stale(name: str, folder: int, path: str) -> None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError.from_os(f"cannot replace {name!r}", error) from error
    try:
        if not try_lock(fd):
            raise HostError(f"{path!r} is being written by another process", errno=errno.EBUSY)
        if os.fstat(fd).st_nlink:
            # else somebody has removed it, and the name may be a new writer's
            os.unlink(name, dir_fd=folder)
    except OSError as error:
        raise HostError.from_os(f"cannot replace {name!r}", error) from error
    finally:
        linux.close(fd)


def try_lock(fd: int) -> bool:
    """Try to lock a file; returns whether we have the lock. It lasts until the last copy of the descriptor is closed.

    Raises:
        OSError: its file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
