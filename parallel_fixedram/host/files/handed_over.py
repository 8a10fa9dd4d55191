"""Files that we make for another process: only that process's user can read and write them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux


@contextlib.contextmanager
def made_for(pid: int, path: str) -> Iterator[None]:
    """Make an empty file with mode 0600, owned by the user a process acts as; its name is on stable storage.

    We have it open while the block runs, so that others can see it is not a leftover.

    Raises:
        HostError: it exists already or cannot be made; nothing of it is left.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)  # whatever the umask is
            if (ids := _acts_as(pid)) != (os.geteuid(), os.getegid()):
                os.fchown(fd, *ids)
            sync(os.path.dirname(path))
        except BaseException:
            os.unlink(path)
            os.close(fd)
            raise
    except OSError as error:
        raise HostError.from_os(f"cannot make {path!r} for process {pid}", error) from error
    with linux.closing(fd):
        yield


def give_to(pid: int, path: str) -> None:
    """Give a file of ours to the user that a process acts as.

    Raises:
        HostError: it cannot be given away, or the process has ended.
    """
    try:
        if (ids := _acts_as(pid)) != (os.geteuid(), os.getegid()):
            os.chown(path, *ids, follow_symlinks=False)
    except OSError as error:
        raise HostError.from_os(f"cannot give {path!r} to process {pid}", error) from error


def sync(path: str) -> None:
    """fsync(2) a file, or a folder with the names in it, by path.

    Raises:
        OSError: it failed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with linux.closing(fd):
        os.fsync(fd)


def _acts_as(pid: int) -> tuple[int, int]:
    """User and group id that a process makes files with (proc_pid_status(5): real, effective, saved, file system)."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="surrogateescape") as file:
        found = re.search(r"^Uid:.*\t(\d+)\nGid:.*\t(\d+)$", file.read(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {pid} has ended")
    return int(found[1]), int(found[2])
