"""System calls that Python does not wrap; like those it does, they raise OSError."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FALLOC_FL_KEEP_SIZE = 0x01  # linux/falloc.h
FALLOC_FL_PUNCH_HOLE = 0x02
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
RENAME_NOREPLACE = 1  # linux/fs.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
HUGETLBFS_MAGIC = 0x958458F6  # linux/magic.h
TMPFS_MAGIC = 0x01021994
SYS_PIDFD_GETFD = 438  # asm-generic/unistd.h; the same number everywhere
SYS_PROCESS_MADVISE = 440
SYS_CACHESTAT = 451
SYS_USERFAULTFD = 323 if platform.machine() == "x86_64" else 282  # asm/unistd_64.h; asm-generic/unistd.h
MADV_WILLNEED = 3  # asm-generic/mman-common.h
MADV_PAGEOUT = 21
_FICLONE = 0x40049409  # linux/fs.h
PAGE_IS_PRESENT = 1 << 3  # linux/fs.h
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.syscall.restype = ctypes.c_long


class _Iovec(ctypes.Structure):
    """struct iovec of bits/types/struct_iovec.h."""

    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


_libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.POINTER(_Iovec),
    ctypes.c_ulong,
    ctypes.POINTER(_Iovec),
    ctypes.c_ulong,
    ctypes.c_ulong,
)


class _CachestatRange(ctypes.Structure):
    """struct cachestat_range of linux/mman.h."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    """struct cachestat of linux/mman.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("nr_cache", "nr_dirty", "nr_writeback", "nr_evicted", "nr_recently_evicted")
    )


class _PmScanArg(ctypes.Structure):
    """struct pm_scan_arg of linux/fs.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    )


_PAGEMAP_SCAN = 3 << 30 | ctypes.sizeof(_PmScanArg) << 16 | ord("f") << 8 | 16  # _IOWR('f', 16, struct pm_scan_arg)


def _check(result: int) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): unlike posix_fallocate it is never emulated by writing; EOPNOTSUPP if the file system lacks it.

    It is repeated after a signal, as in calls that Python wraps (PEP 475): on tmpfs any signal interrupts it, even
    SIGCONT.
    """
    while True:
        try:
            return _check(_libc.fallocate(fd, mode, offset, length))
        except InterruptedError:
            continue


def rename_new(source: str, target: str, folder: int) -> None:
    """renameat2(2) with RENAME_NOREPLACE inside one folder: EEXIST if ``target`` is taken, EINVAL where unsupported."""
    _check(_libc.renameat2(folder, os.fsencode(source), folder, os.fsencode(target), RENAME_NOREPLACE))


def clone_file(source: int, target: int) -> None:
    """FICLONE of ioctl_ficlone(2): make the target a copy that shares the source's space; EOPNOTSUPP if unsupported."""
    fcntl.ioctl(target, _FICLONE, source)


def close(fd: int) -> None:
    """close(2), ignoring errors: only for a descriptor through which nothing was written since its last sync."""
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[None]:
    """``close`` the descriptor when the block is left."""
    try:
        yield
    finally:
        close(fd)


def start_writeback(fd: int, offset: int = 0, length: int = 0) -> None:
    """Start writing dirty page cache to the device without waiting for it (sync_file_range(2)); 0 for all the rest."""
    _check(_libc.sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE))


def die_with_parent(signum: int, parent: int) -> None:
    """Have the kernel send ``signum`` to this process when the thread that forked it ends (PR_SET_PDEATHSIG).

    Args:
        signum: the signal.
        parent: process id of the parent as seen before the fork; if it is gone already, this process exits immediately.
    """
    _check(_libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(128 + signum)


def is_hugetlbfs(fd: int) -> bool:
    """Whether the file is on hugetlbfs (fstatfs(2)), where reading a hole through a mapping allocates a huge page."""
    return file_system_magic(fd) == HUGETLBFS_MAGIC


def is_tmpfs(fd: int) -> bool:
    """Whether the file is in shared memory (fstatfs(2)), that is, only in the page cache and swap."""
    return file_system_magic(fd) == TMPFS_MAGIC


def file_system_magic(fd: int) -> int:
    """The number of a file's file system (``f_type`` of fstatfs(2), linux/magic.h)."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer))
    return int.from_bytes(buffer.raw[:8], "little")


def mincore(address: int, length: int, into: NDArray[np.uint8]) -> None:
    """mincore(2): bit 0 of each element of ``into`` says whether that page of this process's mapping is in memory.

    For a file mapping the kernel asks the page cache, not the page table, and touches nothing. A process that may not
    write the file gets 1 for every page.
    """
    _check(_libc.mincore(address, length, into.ctypes.data))


def cachestat(fd: int, offset: int = 0, length: int = 0) -> int:
    """cachestat(2) of Linux 6.5: how many pages of a range of a file are in the page cache; length 0 means to its end.

    Raises:
        OSError: ENOSYS if the kernel is older; EOPNOTSUPP on hugetlbfs; EPERM if we neither own the file nor may write
            it.
    """
    found = _Cachestat()
    what = _CachestatRange(offset, length)
    _check(_libc.syscall(SYS_CACHESTAT, fd, ctypes.byref(what), ctypes.byref(found), 0))
    return int(found.nr_cache)


def process_vm_readv(pid: int, address: int, into: memoryview) -> int:
    """process_vm_readv(2) of one piece: copy from ``address`` on in process ``pid``.

    Returns:
        Bytes copied: fewer than ``into`` has if a page on the way cannot be read.
    """
    length = into.nbytes
    local = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(into)), length)
    got = int(_libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(_Iovec(address, length)), 1, 0))
    if got < 0:
        _check(got)
    return got


def may_read_process(pid: int) -> None:
    """Raise EPERM or ESRCH as process_vm_readv(2) would, without touching a page of the process."""
    try:
        process_vm_readv(pid, 0, memoryview(bytearray(1)))
    except OSError as error:
        if error.errno != errno.EFAULT:  # EFAULT: we may. The right is checked before the address
            raise


def process_madvise(pidfd: int, ranges: NDArray[np.uint64], advice: int) -> None:
    """process_madvise(2) of Linux 5.10: give advice about memory of another process on its behalf.

    Args:
        pidfd: the process.
        ranges: first address and bytes of each, shape (ranges, 2), as in struct iovec; at most 1024.
        advice: MADV_WILLNEED begins to read what is in swap. MADV_PAGEOUT reclaims pages now if possible; what came
            from swap and was not written since is simply dropped.

    Raises:
        OSError: EPERM without CAP_SYS_NICE; ENOSYS if the kernel is older.
    """
    iovecs = np.ascontiguousarray(ranges, np.uint64)
    where = ctypes.c_void_p(iovecs.ctypes.data)
    if _libc.syscall(SYS_PROCESS_MADVISE, pidfd, where, ctypes.c_size_t(len(iovecs)), advice, 0) < 0:
        _check(-1)


def userfaultfd(flags: int) -> int:
    """userfaultfd(2): a descriptor with which to watch memory of this process; EPERM if a right is missing."""
    fd = int(_libc.syscall(SYS_USERFAULTFD, flags))
    if fd < 0:
        _check(fd)
    return fd


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2) of Linux 5.6: a duplicate of another process's descriptor; takes the right to trace it."""
    found = int(_libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0))
    if found < 0:
        _check(found)
    return found


def pagemap_scan(
    fd: int, start: int, end: int, into: NDArray[np.uint64], kinds: int = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
) -> int:
    """The PAGEMAP_SCAN ioctl of Linux 6.7: which pages are present or swapped, and not the zero page.

    ``walk_end`` is not returned: after more than 512 regions the kernel may reach the end and still leave a place in
    the middle there. All pages before the end of the last region were scanned; all pages if ``into`` was not filled.

    Args:
        fd: descriptor of /proc/PID/pagemap.
        start: first address, a multiple of the page size.
        end: address after the last one.
        into: shape (regions, 3); takes first address, address after the last one, and categories of each region.
        kinds: PAGE_IS_PRESENT, PAGE_IS_SWAPPED, or both.

    Returns:
        How many regions were found.

    Raises:
        OSError: ENOTTY if the kernel is older.
    """
    arg = _PmScanArg(
        size=ctypes.sizeof(_PmScanArg),
        start=start,
        end=end,
        vec=into.ctypes.data,
        vec_len=len(into),
        category_inverted=PAGE_IS_PFNZERO,
        category_mask=PAGE_IS_PFNZERO,
        category_anyof_mask=kinds,
        return_mask=PAGE_IS_PRESENT,
    )
    return int(fcntl.ioctl(fd, _PAGEMAP_SCAN, arg))
