"""A file for trying out what a folder can do. It has no name, so nothing is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from parallel_fixedram.core.errors import HostError, unopened
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.direct_channel import DirectChannel
from parallel_fixedram.host.processes import signals

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What open(2) fails with where there are no files without a name (O_TMPFILE)."""


class Probe:
    """A file in a folder, without a name.

    Args:
        fd: its descriptor, borrowed.
        folder: the folder's name, for messages.

    Attributes:
        channel: the file, through the page cache.
    """

    def __init__(self, fd: int, folder: str) -> None:
        self._folder = folder
        self.channel = FileChannel(fd, folder)

    @contextlib.contextmanager
    def direct(self) -> Iterator[DirectChannel | None]:
        """The same file, bypassing the page cache; None if the file system refuses that."""
        try:
            fd = os.open(f"/proc/self/fd/{self.channel.fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        with linux.closing(fd):
            yield DirectChannel(fd, self._folder)

    def shares_space(self) -> bool:
        """Whether a copy of a file can share the file's space (FICLONE of ioctl_ficlone(2)).

        Raises:
            HostError: a page cannot be written, or a second file cannot be made.
        """
        self.channel.write(0, memoryview(bytes(4096)))
        with probe(self._folder, named=True) as copy:
            try:
                linux.clone_file(self.channel.fd, copy.channel.fd)
            except OSError:
                return False
        return True


@contextlib.contextmanager
def probe(folder: str, *, named: bool = False) -> Iterator[Probe]:
    """A new file in the folder, gone afterwards whatever happens.

    Args:
        folder: its path.
        named: whether the file may have a name for a moment, if the file system has no files without one.

    Raises:
        NoFileError: there is no such folder.
        HostError: no file can be made in it.
    """
    try:
        fd = _nameless(folder, named)
    except OSError as error:
        raise unopened(f"cannot create a file in {folder!r}", error) from error
    with linux.closing(fd):
        yield Probe(fd, folder)


def _nameless(folder: str, named: bool) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if not named or error.errno not in _NO_TMPFILE:
            raise
    import tempfile  # slow, and few file systems need it

    with signals.held():  # an interrupt must not leave the name behind
        fd, name = tempfile.mkstemp(prefix=".parallel-fixedram-", suffix=".part", dir=folder)
        try:
            os.unlink(name)
        except OSError as error:
            linux.close(fd)
            raise HostError.from_os(f"cannot remove {name!r}", error) from error
    return fd
