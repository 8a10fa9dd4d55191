"""How much of a file is in the page cache, and how much may still go there."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux


def is_cold(fd: int, offsets: Sequence[int]) -> bool:
    """Whether most of the bytes at ``offsets`` would have to come from the device.

    File systems in memory count as warm, and so do those that cannot tell, and offsets after the end of the file.
    """
    try:
        length = os.fstat(fd).st_size
        inside = [offset for offset in offsets if offset < length]
        cold = 0 if linux.is_tmpfs(fd) else sum(not _is_cached(fd, offset) for offset in inside)
    except OSError:
        return False
    return 2 * cold > len(offsets)


def _is_cached(fd: int, offset: int) -> bool:
    """Asks cachestat(2), which has no side effect; if it refuses, ``preadv2(RWF_NOWAIT)``, which starts reading ahead.

    Raises:
        OSError: both refuse.
    """
    try:
        return linux.cachestat(fd, offset, 1) > 0
    except OSError:
        try:
            os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        return True


def takes_direct_io(path: str) -> bool:
    """Whether the file can be opened for reading with O_DIRECT."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def cached_bytes(fd: int) -> int | None:
    """Bytes of a file that are in the page cache, in whole pages; None if the kernel does not tell.

    For a file in shared memory that is all its data except what is in swap.
    """
    try:
        return linux.cachestat(fd) * mmap.PAGESIZE
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return None
        raise HostError.from_os("cannot ask what is cached", error) from error


def drop_from_cache(fd: int) -> None:
    """Drop a file from the page cache, after writing it to its device, because dirty pages are not dropped.

    Pages that another process has mapped or is using stay cached, and so does a file in shared memory, which is nowhere
    else.

    Raises:
        HostError: it cannot be written to its device.
    """
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise HostError.from_os("cannot take a file out of the page cache", error) from error


def dirty_room() -> int:
    """Bytes that can be written into the page cache before the kernel makes writers wait; 0 if it does not tell.

    It does so from halfway between the background and the hard limit (mm/page-writeback.c, dirty_freerun_ceiling).
    """
    pages = dict.fromkeys(("nr_dirty_threshold", "nr_dirty_background_threshold", "nr_dirty", "nr_writeback"), 0)
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name in pages:
                    pages[name] = int(value)
    except OSError:
        return 0
    ceiling = (pages["nr_dirty_threshold"] + pages["nr_dirty_background_threshold"]) // 2
    return max(ceiling - pages["nr_dirty"] - pages["nr_writeback"], 0) * mmap.PAGESIZE
