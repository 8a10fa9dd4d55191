"""Space for a file that is about to be written: reserved, to notice a full file system early, and given back."""

from __future__ import annotations

import errno
import os

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel


class Space:
    """The space of a file on its file system.

    Args:
        channel: the file.
    """

    def __init__(self, channel: FileChannel) -> None:
        self._channel = channel
        self._on_tmpfs: bool | None = None
        self._promised = 0

    def is_in_memory(self) -> bool:
        """Whether the file is on tmpfs, where allocated space is memory.

        Raises:
            HostError: it cannot be told.
        """
        if self._on_tmpfs is None:  # asked once: scattered space takes many calls
            try:
                self._on_tmpfs = linux.is_tmpfs(self._channel.fd)
            except OSError as error:
                raise HostError.from_os(f"cannot look at {self._channel.name!r}", error) from error
        return self._on_tmpfs

    def reserve(self, offset: int, length: int) -> bool:
        """Allocate space; the file keeps its length.

        On tmpfs that would fill memory twice, so there the length is only compared with what is free.

        Returns:
            False if the file system cannot tell whether there is enough space.

        Raises:
            HostError: there is not enough space.
        """
        fd = self._channel.fd
        try:
            if self.is_in_memory():
                self._promised += length
                found = os.fstatvfs(fd)
                if found.f_blocks and self._promised > found.f_bavail * found.f_frsize:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return True
            linux.fallocate(fd, linux.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            raise HostError.from_os(f"cannot reserve {length} bytes for {self._channel.name!r}", error) from error
        return True

    def give_back(self, offset: int, length: int) -> None:
        """Turn reserved space into a hole."""
        self._channel.punch(offset, length)
