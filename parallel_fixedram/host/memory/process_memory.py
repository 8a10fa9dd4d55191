"""The RAM of a running process, reached from outside and left as it is.

::

    shared mapping: memfd, tmpfs, file ---- the very file, opened once more ---> MappedSource   no copy
    shared mapping of huge pages ---------- the very file, opened once more ---> CopiedSource   preadv
    private mapping ------ page tables and process_vm_readv of the process ----> ProcessSource  one copy

The process is not stopped, traced or informed; the caller makes sure that it does not unmap the memory meanwhile.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from enum import StrEnum

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import PageSource
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import data_extents
from parallel_fixedram.host.memory import pagemap
from parallel_fixedram.host.memory.copied_source import CopiedSource, CopyingSource, newly_touched_by_asking
from parallel_fixedram.host.memory.mapped_source import MappedSource, swapped_out
from parallel_fixedram.host.memory.memory_limit import memory_room, swapped_bytes
from parallel_fixedram.host.memory.process_maps import Mapping, check_rights, mapped_parts, open_mapped_file, refusal
from parallel_fixedram.host.memory.swapped import STEP_BYTES, SwappedPages, check_room, has_swap


class MemoryKind(StrEnum):
    """How memory of another process is reached."""

    SHARED = "shared"
    """Mapped by each worker: no copy."""
    HUGE = "shared, huge pages"
    """Read from its file."""
    PRIVATE = "private"
    """Copied out of the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """A piece of another process's memory, opened."""

    source: PageSource
    kind: MemoryKind
    path: str
    """Its name in /proc/PID/maps; empty for most anonymous memory."""
    host_page_size: int
    """Page size of the memory in bytes: more than 4096 on hugetlbfs."""


class ProcessSource(CopyingSource):
    """Private memory of another process, copied with ``process_vm_readv``.

    Args:
        pid: the process.
        address: where the block starts, a multiple of the host's page size.
        length: bytes of the block, a multiple of the host's page size.
        file: descriptor of the file, if this is a private mapping of one; duplicated. The file shows through wherever
            the process has no page of its own.
        offset: where the block starts in that file, bytes.
        tells_holes: False if the whole file has to be treated as data.
    """

    def __init__(
        self,
        pid: int,
        address: int,
        length: int,
        *,
        file: int | None = None,
        offset: int = 0,
        tells_holes: bool = True,
    ) -> None:
        super().__init__(page_size=mmap.PAGESIZE)
        self.tells_holes = tells_holes
        self._pid = pid
        self._address = address
        self._pages_in_all = length // mmap.PAGESIZE
        self._file = -1 if file is None else os.dup(file)
        self._offset = offset
        self._swapped: SwappedPages | None = None
        self._protected = False
        self._swapped_out: int | None = None

    def note_protection(self) -> None:
        """From now on, pages that look swapped may be untouched ones that were write-protected (userfaultfd).

        What really is in swap is known from the last time the whole block was examined before that. If anything went to
        swap since, all pages that look swapped count as data.
        """
        self._protected = True

    def open(self) -> None:
        """Check that we may read the memory; a fork may have lost the right (PageSource.open)."""
        check_rights(self._pid)
        if self._swapped is None and has_swap():
            self._swapped = SwappedPages(self._pid)

    def _read(self, position: int, into: memoryview) -> int:
        """Pages that come from swap go back there, so that reading costs the process no memory."""
        address = self._address + position
        if self._swapped is None or not len(self._swapped.within(address, into.nbytes)):
            return self._copy(address, into)
        step = into[:STEP_BYTES]
        swapped = self._swapped.within(address, step.nbytes)
        self._swapped.bring_in(swapped)
        got = self._copy(address, step)
        self._swapped.give_back(swapped)
        return got

    def _copy(self, address: int, into: memoryview) -> int:
        try:
            got = linux.process_vm_readv(self._pid, address, into)
        except OSError as error:
            raise refusal(self._pid, error, f"cannot read memory of process {self._pid} at {address:#x}") from error
        if got == 0:
            raise HostError(f"cannot read memory of process {self._pid} at {address:#x}: got no bytes")
        return got

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """Pages that the process has written, in memory or swapped, and data of the mapped file
        (PageSource.data_ranges)."""
        if not within.count:
            return []
        if not self.tells_holes:
            return [within]
        return [PageRange(within.first + each.first, each.count) for each in self._occupied(within).ranges()]

    def newly_touched(self, data: PageBitmap) -> list[PageRange]:
        """One look at the page tables of the whole block (PageSource.newly_touched)."""
        if not self.tells_holes or data.count() == data.pages:
            return newly_touched_by_asking(self, data)
        found = self._occupied(PageRange(0, self._pages_in_all))
        found.words &= ~data.words
        return found.ranges()

    def close(self) -> None:
        """Drop the buffer and the descriptor (PageSource.close)."""
        super().close()
        if self._swapped is not None:
            self._swapped.close()
            self._swapped = None
        if self._file >= 0:
            linux.close(self._file)
            self._file = -1

    def _occupied(self, within: PageRange) -> PageBitmap:
        start = within.first * mmap.PAGESIZE
        if not self._protected and within.count == self._pages_in_all:
            # before looking: what is in swap by then is in this answer
            self._swapped_out = swapped_out()
        try:
            swapped = not self._protected
            found = pagemap.occupied(self._pid, self._address + start, within.count, swapped=swapped)
            if self._protected and (self._swapped_out is None or swapped_out() != self._swapped_out):
                found = pagemap.occupied(self._pid, self._address + start, within.count)
        except OSError as error:
            raise refusal(self._pid, error, f"cannot read the page tables of process {self._pid}") from error
        if self._file >= 0:
            first = self._offset + start
            for data, hole in data_extents(self._file, first, first + within.count * mmap.PAGESIZE):
                page = (data - first) // mmap.PAGESIZE
                found.set_range(PageRange(page, -(-(hole - first) // mmap.PAGESIZE) - page))
        return found


def open_process_memory(pid: int, address: int, length: int) -> ProcessMemory:
    """Open a piece of another process's memory for reading; everything that needs a right is tried here.

    Args:
        pid: the process.
        address: first address, a multiple of the host's page size.
        length: bytes, a multiple of the host's page size.

    Raises:
        MachineError: the process has ended.
        HostError: nothing is mapped there, or more than one thing; or a right is missing.
    """
    parts = mapped_parts(pid, address, length)
    first = parts[0]
    offset = first.offset + address - first.start
    if first.shared:
        fd = open_mapped_file(pid, first)
        with linux.closing(fd):
            return _shared(fd, offset, length, first.path)
    check_rights(pid)
    check_room(pid, swapped_bytes(pid), memory_room(pid))
    return _private(pid, address, length, first, offset)


def _shared(fd: int, offset: int, length: int, path: str) -> ProcessMemory:
    try:
        huge = linux.is_hugetlbfs(fd)
        source = CopiedSource(fd, offset=offset) if huge else MappedSource(fd, offset=offset, length=length)
        return ProcessMemory(
            source=source,
            kind=MemoryKind.HUGE if huge else MemoryKind.SHARED,
            path=path,
            host_page_size=os.fstat(fd).st_blksize if huge else mmap.PAGESIZE,
        )
    except OSError as error:
        raise HostError.from_os(f"cannot look at guest RAM {path!r}", error) from error


def _private(pid: int, address: int, length: int, mapping: Mapping, offset: int) -> ProcessMemory:
    fd, host_page_size, tells_holes = None, mmap.PAGESIZE, True
    try:
        if mapping.inode:
            try:
                fd = open_mapped_file(pid, mapping)
            except HostError:
                tells_holes = False
        if fd is not None and linux.is_hugetlbfs(fd):
            host_page_size = os.fstat(fd).st_blksize
            tells_holes = os.fstat(fd).st_blocks == 0  # it cannot tell where its data is, only that there is none
        source = ProcessSource(
            pid,
            address,
            length,
            file=fd if host_page_size == mmap.PAGESIZE else None,
            offset=offset,
            tells_holes=tells_holes,
        )
    except OSError as error:
        raise HostError.from_os(f"cannot look at guest RAM {mapping.path!r}", error) from error
    finally:
        if fd is not None:
            linux.close(fd)
    return ProcessMemory(source=source, kind=MemoryKind.PRIVATE, path=mapping.path, host_page_size=host_page_size)
