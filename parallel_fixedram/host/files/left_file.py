"""Files that may be left behind: one is removed only while it is certain that nobody uses it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.reports.clean import Leftover
from parallel_fixedram.host import linux
from parallel_fixedram.host.files import part
from parallel_fixedram.host.files.holders import who_has_open

_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def files_in(folder: int, is_one: Callable[[str], object]) -> Iterator[tuple[str, os.stat_result]]:
    """This user's regular files in a folder (for root, everybody's), sorted by name; links are not followed.

    Args:
        folder: descriptor of the folder.
        is_one: whether a name is of interest.

    Raises:
        OSError: the folder cannot be read.
    """
    for name in sorted(filter(is_one, os.listdir(folder))):
        with contextlib.suppress(OSError):  # it is gone
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and os.geteuid() in (0, status.st_uid):
                yield name, status


def head_of(name: str, folder: int, length: int) -> bytes:
    """The first bytes of a file in a folder; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        fd = os.open(name, _OPEN | os.O_RDONLY, dir_fd=folder)
        with linux.closing(fd):
            return os.pread(fd, length, 0)
    return b""


def judged(found: Leftover, name: str, folder: int, *, remove: bool, locked: bool = False) -> Leftover | None:
    """Complete a finding with whether a process holds the file; remove the file if that is wanted and nobody does.

    We hold it ourselves from before we know that nobody else does until its name is gone.

    Args:
        found: what is known so far; a file with a ``why_not`` is not removed.
        name: its name in the folder.
        folder: descriptor of the folder.
        remove: whether to remove it.
        locked: whether such a file's maker has a lock on it, so that we have to take the lock.

    Returns:
        None if it is gone by now.
    """
    try:  # O_RDWR for the lock: NFS gives none for a descriptor that cannot write
        fd = os.open(name, _OPEN | (os.O_RDWR if locked else os.O_RDONLY), dir_fd=folder)
    except FileNotFoundError:
        return None
    except BlockingIOError:  # somebody has a lease on it
        return replace(found, held=True, why_not="a process works with it")
    except OSError as error:
        return replace(found, why_not=HostError.from_os("cannot look at it", error).message)
    try:
        if locked and not part.try_lock(fd):
            return replace(found, held=True, why_not=_holder(fd) or "a process has locked it")
        if holder := _holder(fd) if locked else who_has_open(fd):
            return replace(found, held=True, why_not=holder)
        # after the lock: until we had it the name may have become another file's
        if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False)):
            return None
        if remove and not found.why_not:
            os.unlink(name, dir_fd=folder)
            return replace(found, removed=True)
        return found
    except FileNotFoundError:
        return None
    except OSError as error:
        return replace(found, why_not=HostError.from_os("cannot be removed", error).message)
    except HostError as error:
        return replace(found, why_not=found.why_not or f"{error.message}: {error.hint}")
    finally:
        linux.close(fd)


def _holder(fd: int) -> str:
    """Who has it open, if that can be told; it is only for the message, since the lock decides."""
    try:
        return who_has_open(fd)
    except HostError:
        return ""


def holder_in(path: str) -> str:
    """Who has a file in a folder open; empty if nobody has.

    Raises:
        OSError: the folder cannot be read.
        HostError: it cannot be told.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with linux.closing(folder):
        for name, _ in files_in(folder, lambda _: True):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(name, _OPEN | os.O_RDONLY, dir_fd=folder)
                with linux.closing(fd):
                    if holder := who_has_open(fd):
                        return f"{name!r} in it: {holder}"
    return ""
