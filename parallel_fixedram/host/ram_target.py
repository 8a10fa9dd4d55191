"""Guest RAM as a place to restore to: a file in shared memory, existing or new."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import HostError, RequestError, os_message
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host import linux
from parallel_fixedram.host.channel import FileChannel, open_writable
from parallel_fixedram.host.page_source import data_extents

logger = logging.getLogger(__name__)


class RamTarget:
    """Context manager around the file a block is restored into; a file it made goes away unless ``keep`` is called.

    Args:
        block: what will be restored; the file, or the rest of it from ``offset`` on, has to be exactly as long.
        path: the file; made with mode 0600 if there is none.
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
        self._made = False
        self.fd = self._open()
        try:
            room = FileChannel(self.fd, path).stat().st_size - offset
            size = room if length is None else length
            if size != block.used_length or size > room:
                raise RequestError(
                    f"block {block.idstr!r} has {block.used_length} bytes, "
                    f"its destination {path!r} has {max(min(size, room), 0)}"
                )
            if offset % block.page_size:
                raise RequestError(f"offset {offset} of {path!r} is not a multiple of {block.page_size}")
            self.huge = linux.is_hugetlbfs(self.fd)
        except OSError as error:
            self.__exit__(None, None, None)
            raise HostError.from_os(f"cannot look at {path!r}", error) from error
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        linux.close(self.fd)
        if self._made:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            except OSError as failure:  # why the restore failed matters more
                logger.warning("cannot remove %r: %s", self.path, os_message(failure.errno or 0))

    @property
    def end(self) -> int:
        """The offset in the file after the block's last byte."""
        return self.offset + self.block.used_length

    def keep(self) -> None:
        """The restore is complete: the file stays."""
        self._made = False

    def channel(self) -> FileChannel:
        """The file as a Channel; offsets count from the start of the file."""
        return HugeChannel(self.fd, self.path) if self.huge else FileChannel(self.fd, self.path)

    def data_ranges(self) -> list[PageRange]:
        """Pages that may hold something else than zeros now, ascending."""
        size, found = self.block.page_size, []
        for start, end in data_extents(self.fd, self.offset, self.offset + self.block.used_length):
            first, after = (start - self.offset) // size, -(-(end - self.offset) // size)
            found.append(PageRange(first, after - first))
        return found

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o600)
        except FileExistsError:
            return open_writable(self.path)
        except OSError as error:
            raise HostError.from_os(f"cannot create {self.path!r}", error) from error
        self._made = True
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, self.offset + self.block.used_length)
        except OSError as error:
            linux.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            raise HostError.from_os(f"cannot size {self.path!r}", error) from error
        return fd


class HugeChannel(FileChannel):
    """A file on hugetlbfs, which cannot be written with pwrite: written through a mapping, space allocated first."""

    _view: memoryview | None = None

    def write(self, offset: int, data: memoryview) -> None:
        """Allocate, so that a full pool is an error and not a SIGBUS, then copy (Channel.write)."""
        try:
            linux.fallocate(self.fd, 0, offset, len(data))
        except OSError as error:
            raise HostError.from_os(f"cannot take huge pages for {self.name!r}", error) from error
        self._mapped()[offset : offset + len(data)] = data

    def punch(self, offset: int, length: int) -> None:
        """Write zeros where there is something else: a part of a huge page cannot be a hole (Channel.punch)."""
        if self.bytes_at(offset, length) != bytes(length):
            self._mapped()[offset : offset + length] = bytes(length)

    def _mapped(self) -> memoryview:
        if self._view is None:
            try:
                self._view = memoryview(mmap.mmap(self.fd, 0))
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise HostError.from_os(f"cannot map {self.name!r}", error) from error
                raise
        return self._view
