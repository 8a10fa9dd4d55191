"""Guest RAM as a place to restore to: a file in shared memory, existing or new."""

from __future__ import annotations

import errno
import mmap
from types import TracebackType
from typing import Self

from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, data_extents, open_writable
from parallel_fixedram.host.files.publish import PendingFile, exists
from parallel_fixedram.host.processes import signals


class RamTarget:
    """Context manager around the file that a block is restored into. A new file gets its name only from ``keep``.

    If it is left with an error it removes the file that it made, even after ``keep``: a guest's RAM is there completely
    or not at all.

    Args:
        block: what is restored; the file, or the rest of it from ``offset`` on, must have exactly its length.
        path: the file; made with mode 0600 if it does not exist.
        offset: where the block starts in the file, bytes.
        length: bytes of the block there; None for the rest of the file.

    Raises:
        HostError: the file cannot be opened or made.
        RequestError: it is not a regular file, or has another size than the block.
    """

    def __init__(self, block: RAMBlock, path: str, *, offset: int = 0, length: int | None = None) -> None:
        self.block = block
        self.path = path
        self.offset = offset
        self._length = length
        self._pending: PendingFile | None = None
        self.fd = -1

    @undone_if_it_fails
    def __enter__(self) -> Self:
        try:
            if self.offset < 0:
                raise RequestError(f"offset {self.offset} of {self.path!r} is negative")
            with signals.held():
                self._open()
            self._check_room()
            self.huge = linux.is_hugetlbfs(self.fd)
        except OSError as error:
            raise HostError.from_os(f"cannot look at {self.path!r}", error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pending:
            if kind is not None:
                self._pending.withdraw()
            self._pending.__exit__(kind, error, traceback)
        elif self.fd >= 0:
            linux.close(self.fd)
        self._pending, self.fd = None, -1

    @property
    def is_new(self) -> bool:
        """Whether the file was made for the restore."""
        return self._pending is not None

    @property
    def end(self) -> int:
        """The offset in the file after the block's last byte."""
        return self.offset + self.block.used_length

    def keep(self) -> None:
        """The restore is complete: give a new file its name.

        Raises:
            RequestError: somebody else has taken the name meanwhile.
            HostError: the file cannot be renamed.
        """
        if self._pending:
            self._pending.publish()

    def channel(self) -> FileChannel:
        """The file as a Channel; offsets count from the start of the file."""
        return HugeChannel(self.fd, self.path) if self.huge else FileChannel(self.fd, self.path)

    def data_ranges(self) -> list[PageRange]:
        """Pages that may contain anything but zeros now, ascending."""
        size, found = self.block.page_size, []
        for start, end in data_extents(self.fd, self.offset, self.offset + self.block.used_length):
            first, after = (start - self.offset) // size, -(-(end - self.offset) // size)
            found.append(PageRange(first, after - first))
        return found

    def _check_room(self) -> None:
        room = FileChannel(self.fd, self.path).stat().st_size - self.offset
        size = room if self._length is None else self._length
        if size != self.block.used_length or size > room:
            raise RequestError(
                f"block {self.block.idstr!r} has {self.block.used_length} bytes, "
                f"its destination {self.path!r} has {max(min(size, room), 0)}"
            )
        if self.offset % self.block.page_size:
            raise RequestError(f"offset {self.offset} of {self.path!r} is not a multiple of {self.block.page_size}")

    def _open(self) -> None:
        if exists(self.path):
            self.fd = open_writable(self.path)
            return
        self._pending = PendingFile(self.path, size=self.offset + self.block.used_length).__enter__()
        self.fd = self._pending.fd


class HugeChannel(FileChannel):
    """A file on hugetlbfs, which has no pwrite: it is written through a mapping, after allocating the space."""

    _view: memoryview | None = None

    def write(self, offset: int, data: memoryview) -> None:
        """Allocate, so that a full pool is an error and not a SIGBUS, then copy (Channel.write)."""
        if not data:
            return
        try:
            linux.fallocate(self.fd, 0, offset, len(data))
        except OSError as error:
            raise HostError.from_os(f"cannot take huge pages for {self.name!r}", error) from error
        self._mapped()[offset : offset + len(data)] = data

    def punch(self, offset: int, length: int) -> None:
        """Write zeros unless there are zeros already: part of a huge page cannot be a hole (Channel.punch)."""
        if self.bytes_at(offset, length) != bytes(length):
            self._mapped()[offset : offset + length] = bytes(length)

    def _write_gathered(self, offset: int, pieces: list[memoryview]) -> None:
        for piece in pieces:
            self.write(offset, piece)
            offset += len(piece)

    def _mapped(self) -> memoryview:
        if self._view is None:
            try:
                self._view = memoryview(mmap.mmap(self.fd, 0))
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise HostError.from_os(f"cannot map {self.name!r}", error) from error
                raise
        return self._view
