"""System calls that Python does not wrap, each raising OSError like those it does."""

from __future__ import annotations

import contextlib
import ctypes
import os

FALLOC_FL_KEEP_SIZE = 0x01  # linux/falloc.h
FALLOC_FL_PUNCH_HOLE = 0x02
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
RENAME_NOREPLACE = 1  # linux/fs.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
HUGETLBFS_MAGIC = 0x958458F6  # linux/magic.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def _check(result: int) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): unlike posix_fallocate never emulated by writing; EOPNOTSUPP where the file system has none.

    Goes on after a signal, as the calls that Python wraps do (PEP 475): shared memory gives up at any, also at SIGCONT.
    """
    while True:
        try:
            return _check(_libc.fallocate(fd, mode, offset, length))
        except InterruptedError:
            continue


def rename_new(source: str, target: str, folder: int) -> None:
    """renameat2(2) with RENAME_NOREPLACE inside one folder: EEXIST if ``target`` is taken, EINVAL where unsupported."""
    _check(_libc.renameat2(folder, os.fsencode(source), folder, os.fsencode(target), RENAME_NOREPLACE))


def close(fd: int) -> None:
    """close(2) of a descriptor through which nothing was written since its last sync: a failure means nothing then."""
    with contextlib.suppress(OSError):
        os.close(fd)


def start_writeback(fd: int) -> None:
    """Start writing the file's dirty page cache to its device without waiting for it (sync_file_range(2))."""
    _check(_libc.sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE))


def die_with_parent(signum: int, parent: int) -> None:
    """Have the kernel send ``signum`` to this process when the thread that forked it ends (PR_SET_PDEATHSIG).

    Args:
        signum: the signal.
        parent: process id of the parent as seen before the fork; if it is gone already, this process exits at once.
    """
    _check(_libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(128 + signum)


def is_hugetlbfs(fd: int) -> bool:
    """Whether the file lies on huge pages (fstatfs(2)): reading a hole through a mapping would take one."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer))
    return int.from_bytes(buffer.raw[:8], "little") == HUGETLBFS_MAGIC
