"""Open a file that is guest RAM for reading: it is mapped, or copied if it is on hugetlbfs."""

from __future__ import annotations

import mmap
import os
import stat

from parallel_fixedram.core.errors import HostError, RequestError, unopened
from parallel_fixedram.core.protocols import PageSource
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.copied_source import CopiedSource
from parallel_fixedram.host.memory.mapped_source import MappedSource


def open_ram_file(path: str, *, offset: int = 0, length: int | None = None) -> tuple[PageSource, int, int]:
    """Open a file that is guest RAM for reading.

    Args:
        path: a file in shared memory (or any regular file); ``/proc/PID/fd/N`` reaches another process's memfd.
        offset: where the block starts in the file, bytes.
        length: bytes of the block; None for the rest of the file.

    Returns:
        The source, the block's length in bytes, and the page size of the memory behind it in bytes.

    Raises:
        HostError: the file cannot be opened.
        RequestError: it does not exist, is not a regular file, or is too short; or the offset is not a multiple of its
            page size.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unopened(f"cannot open guest RAM {path!r}", error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RequestError(f"guest RAM {path!r} is not a regular file")
        huge = linux.is_hugetlbfs(fd)
        host_page_size = status.st_blksize if huge else mmap.PAGESIZE
        if offset < 0 or offset % host_page_size:
            raise RequestError(f"offset {offset} of guest RAM {path!r} is not a multiple of {host_page_size}")
        size = status.st_size - offset if length is None else length
        if size <= 0 or offset + size > status.st_size:
            raise RequestError(f"guest RAM {path!r} has {status.st_size} bytes, asked for {max(size, 0)} at {offset}")
        if size % TARGET_PAGE_SIZE:
            raise RequestError(f"guest RAM {path!r}: size {size} is not a multiple of the page size {TARGET_PAGE_SIZE}")
        source = CopiedSource(fd, offset=offset) if huge else MappedSource(fd, offset=offset, length=size)
    except OSError as error:
        raise HostError.from_os(f"cannot look at guest RAM {path!r}", error) from error
    finally:
        linux.close(fd)
    return source, size, host_page_size
