"""Guest RAM as a file: how its pages are read without touching what the guest never touched.

Reading a hole of shared memory through a mapping allocates it, so a scan of an empty 2 GiB memfd costs 2 GiB of memory;
``lseek(SEEK_DATA)`` tells for microseconds which ranges have ever been written (swapped pages count as data), and
``pread`` gives zeros for a hole without allocating anything. Both sources rest on that:

- MappedSource maps the file and hands out views of it: no copy. Its callers stay inside ``data_ranges``.
- CopiedSource reads into a buffer of its own: for hugetlbfs, which says that everything is data.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator

import numpy as np

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.protocols import Pages, PageSource
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.channel import anonymous_memory


class MappedSource:
    """Pages of a shared-memory file, mapped read-only by each process that reads them.

    Args:
        fd: descriptor of the file, readable; duplicated.
        offset: where the block starts in the file, bytes, a multiple of the host page size.
        length: bytes of the block, a multiple of ``page_size``.
        page_size: target page size in bytes.
    """

    tells_holes = True

    def __init__(self, fd: int, *, offset: int = 0, length: int, page_size: int = TARGET_PAGE_SIZE) -> None:
        self._fd = os.dup(fd)
        self._offset = offset
        self._length = length
        self._page_size = page_size
        self._pages: Pages | None = None

    def open(self) -> None:
        """Map the block (PageSource.open)."""
        if self._pages is None:
            try:
                view = mmap.mmap(self._fd, self._length, mmap.MAP_SHARED, mmap.PROT_READ, offset=self._offset)
            except OSError as error:
                raise HostError.from_os("cannot map guest RAM", error) from error
            except ValueError as error:  # mmap looks at the file's size itself
                raise HostError("cannot map guest RAM: its file became shorter") from error
            self._pages = np.frombuffer(view, np.uint64).reshape(-1, self._page_size // 8)

    def pages(self, first: int, count: int) -> Pages:
        """A view of the mapping: no byte is copied (PageSource.pages)."""
        assert self._pages is not None, "open() comes first"
        return self._pages[first : first + count]

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """What SEEK_DATA and SEEK_HOLE say; everything where the file system does not know (PageSource.data_ranges)."""
        first = self._offset + within.first * self._page_size
        found: list[PageRange] = []
        for start, end in data_extents(self._fd, first, first + within.count * self._page_size):
            page = (start - self._offset) // self._page_size
            after = -(-(end - self._offset) // self._page_size)
            if found and found[-1].end >= page:
                page = found.pop().first
            found.append(PageRange(page, after - page))
        return found

    def close(self) -> None:
        """Unmap and close; views handed out stay valid until they are dropped (PageSource.close)."""
        self._pages = None
        if self._fd >= 0:
            linux.close(self._fd)
            self._fd = -1


class CopiedSource:
    """Pages of a file on huge pages, read with ``preadv`` into a private, page-aligned buffer.

    Args:
        fd: descriptor of the file, readable; duplicated.
        offset: where the block starts in the file, bytes.
        page_size: target page size in bytes.
    """

    tells_holes = False

    def __init__(self, fd: int, *, offset: int = 0, page_size: int = TARGET_PAGE_SIZE) -> None:
        self._fd = os.dup(fd)
        self._offset = offset
        self._page_size = page_size
        self._buffer: Pages = np.empty((0, page_size // 8), np.uint64)

    def open(self) -> None:
        """Nothing to prepare: ``preadv`` needs no mapping (PageSource.open)."""

    def pages(self, first: int, count: int) -> Pages:
        """A copy of the pages, overwritten by the next call (PageSource.pages)."""
        if len(self._buffer) < count:
            memory = anonymous_memory(count * self._page_size)
            self._buffer = np.frombuffer(memory, np.uint64).reshape(count, -1)
        target = self._buffer[:count].data.cast("B")
        offset = self._offset + first * self._page_size
        while target:
            try:
                got = os.preadv(self._fd, [target], offset)
            except OSError as error:
                raise HostError.from_os("cannot read guest RAM", error) from error
            if got == 0:
                raise HostError("guest RAM became shorter while it was read")
            target, offset = target[got:], offset + got
        result = self._buffer[:count]
        result.flags.writeable = False
        return result

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """All of it: content decides (PageSource.data_ranges)."""
        return [within] if within.count else []

    def close(self) -> None:
        """Drop buffer and descriptor (PageSource.close)."""
        self._buffer = np.empty((0, self._page_size // 8), np.uint64)
        if self._fd >= 0:
            linux.close(self._fd)
            self._fd = -1


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of [start, end) that are not holes, ascending; the whole range where the file system cannot tell."""
    position = start
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
            if data >= end:
                return
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end of the file
                return
            yield position, end
            return
        yield data, min(hole, end)
        position = hole


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
        RequestError: it is not a regular file, is too short, or the offset is not a multiple of its page size.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError.from_os(f"cannot open guest RAM {path!r}", error) from error
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
