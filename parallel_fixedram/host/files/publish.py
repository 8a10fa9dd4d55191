"""PendingFile: a file that has its final name only when it is complete and on stable storage.

::

    .NAME.part  O_EXCL, O_NOFOLLOW, 0600, flock  -- writes --> fsync --> rename to NAME --> fsync of the folder

At every instant NAME is absent, the complete old file, or the complete new file. A .part whose writer is gone (its lock
is free) belongs to nobody and is replaced.

A file that is replaced is kept open until the folder is synced. Otherwise the sync would include freeing its blocks,
which takes seconds if the file system discards them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from types import TracebackType
from typing import Self

from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import (
    CapabilityError,
    DurabilityError,
    HostError,
    NoFileError,
    RequestError,
    os_message,
    unopened,
)
from parallel_fixedram.core.save_options import QUEUE_DEPTH
from parallel_fixedram.core.uri import NOT_SEEKABLE
from parallel_fixedram.host import linux
from parallel_fixedram.host.files import part
from parallel_fixedram.host.files.channel import FileChannel, open_readable
from parallel_fixedram.host.files.direct_channel import DirectChannel
from parallel_fixedram.host.files.last_close import close_unwaited
from parallel_fixedram.host.processes import signals

logger = logging.getLogger(__name__)


class PendingFile:
    """Context manager around a file in the making: entering makes the file, leaving without ``publish`` removes it.

    Args:
        path: the final name.
        overwrite: whether an existing file may be replaced.
        size: the length that it begins with, bytes; all of it is a hole.

    Raises:
        RequestError: the final name is taken, or is something that a file cannot replace.
        CapabilityError: the final name is a pipe or something else that cannot seek.
        HostError: no file can be made in the folder, or another process is writing this one.
    """

    def __init__(self, path: str, *, overwrite: bool = False, size: int = 0) -> None:
        self.path = path
        self._size = size
        self.overwrite = overwrite
        self.published = False
        folder, self._name = os.path.split(path)
        if self._name in ("", ".", ".."):
            raise RequestError(f"{path!r} does not name a file")
        self._part = f".{self._name}.part"
        check_target(path, overwrite=overwrite)
        self._folder_path = folder or "."
        self._folder = self.fd = self._direct_fd = self._replaced = -1

    @undone_if_it_fails
    def __enter__(self) -> Self:
        with signals.held():
            try:
                self._folder = os.open(self._folder_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise unopened(f"cannot open the folder {self._folder_path!r}", error) from error
            self.fd = part.create(self._part, self._folder, self.path)
        self.channel = FileChannel(self.fd, self.path)
        if self._size:
            self.set_size(self._size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.fd >= 0 and not self.published:
                # while we hold its lock: after that the name may be another writer's
                _remove(self._part, self._folder)
        finally:
            for fd in (self.fd, self._direct_fd, self._folder):
                if fd >= 0:
                    linux.close(fd)
            if self._replaced >= 0:
                close_unwaited(self._replaced)

    @property
    def part(self) -> str:
        """Its path until it is complete."""
        return os.path.join(self._folder_path, self._part)

    @property
    def folder(self) -> str:
        """The folder that the file is in."""
        return self._folder_path

    def open_direct(self, depth: int = QUEUE_DEPTH) -> DirectChannel | None:
        """A second descriptor with O_DIRECT, for ``depth`` writes in flight; None if the file system refuses it."""
        flags = os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._direct_fd = os.open(self._part, flags, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return None
            raise HostError.from_os(f"cannot open {self.path!r} for direct I/O", error) from error
        return DirectChannel(self._direct_fd, self.path, depth)

    def set_size(self, size: int) -> None:
        """Set the file's length; what is not written is a hole."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise HostError.from_os(f"cannot size {self.path!r} to {size} bytes", error) from error

    def publish(self) -> None:
        """Give the file its final name; its contents have to be synced before.

        Raises:
            RequestError: the name was taken in the meantime and may not be overwritten.
            HostError: it cannot be renamed; the file is gone when the context ends.
            DurabilityError: the file has its name, but its .part name next to it cannot be removed.
        """
        try:
            with signals.held():  # no signal between the rename and the note that it happened
                self._keep_replaced()
                self._rename()
                self.published = True
        except FileExistsError as error:
            raise RequestError(f"{self.path!r} exists now: somebody else made it in the meantime") from error
        except OSError as error:
            if self.published:
                raise DurabilityError(
                    f"{self.path!r} is published, but {self._part!r} next to it cannot be removed",
                    errno=error.errno or 0,
                ) from error
            raise HostError.from_os(f"cannot rename {self._part!r} to {self.path!r}", error) from error

    def withdraw(self) -> None:
        """Remove what was published, if it still has its name: this way several files are published all or none."""
        if self.published:
            for name in (self._name, self._part):
                if _is_called(name, self._folder, self.fd):
                    _remove(name, self._folder)

    def _keep_replaced(self) -> None:
        """Open the file that is about to be replaced; one that cannot be opened is freed by the rename itself."""
        if self.overwrite:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                self._replaced = os.open(self._name, flags, dir_fd=self._folder)

    def _rename(self) -> None:
        if self.overwrite:
            os.rename(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            return
        try:
            linux.rename_new(self._part, self._name, self._folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # file systems without RENAME_NOREPLACE, such as NFS: for a moment the file has both names
            os.link(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            # now: it has its name, whatever becomes of the other one
            self.published = True
            os.unlink(self._part, dir_fd=self._folder)

    def sync_folder(self) -> None:
        """Make the new name durable.

        Raises:
            DurabilityError: the file has its name, but the name may not survive a power cut.
        """
        try:
            os.fsync(self._folder)
        except OSError as error:
            raise DurabilityError(
                f"{self.path!r} is published, but its folder cannot be synced", errno=error.errno or 0
            ) from error


def _is_called(name: str, folder: int, fd: int) -> bool:
    """Whether the name still refers to this file, and not to one that somebody else has put there."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False
    except OSError as failure:
        logger.warning("cannot remove %r: %s", name, os_message(failure.errno or 0))
        return False


def _remove(name: str, folder: int) -> None:
    """Remove a name. A failure is only logged: the error for which the file is removed matters more."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as failure:  # the next writer of the same name removes a .part that is left
        logger.warning("cannot remove %r: %s", name, os_message(failure.errno or 0))


def copy_prefix(path: str, length: int, into: FileChannel) -> None:
    """Copy the first ``length`` bytes of the file that has this name now, if there is one."""
    try:
        fd = open_readable(path)
    except NoFileError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    with linux.closing(fd):
        source, offset = FileChannel(fd, path), 0
        while offset < length and (data := source.bytes_at(offset, min(1 << 20, length - offset))):
            into.write(offset, memoryview(data))
            offset += len(data)


def exists(path: str) -> bool:
    """Whether there is something with that name, even a dangling link.

    Raises:
        NoFileError: there can be no such name.
        HostError: it cannot be told.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unopened(f"cannot look at {path!r}", error) from error
    return True


def check_target(path: str, *, overwrite: bool) -> None:
    """Refuse a final name that cannot become a new file; creates nothing.

    Raises:
        CapabilityError: it is a pipe, a socket or a terminal, which cannot seek.
        RequestError: it exists and may not be overwritten, or is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path) and not overwrite:
            raise _taken(path) from None
        return
    except OSError as error:
        raise unopened(f"cannot look at {path!r}", error) from error
    if stat.S_ISDIR(mode):
        raise RequestError(f"{path!r} is a folder")
    if not stat.S_ISREG(mode):
        if not _can_seek(path):
            raise CapabilityError(NOT_SEEKABLE, hint=f"{path!r} cannot seek; a fixed offset needs a regular file")
        raise RequestError(f"{path!r} is not a regular file")
    if not overwrite:
        raise _taken(path)


def replaced_link(path: str) -> tuple[str, ...]:
    """A note if the final name is a symbolic link, since the link itself is replaced; otherwise nothing."""
    try:
        leads = os.readlink(path)
    except OSError:
        return ()
    return (f"{path!r} was a symbolic link to {leads!r}; the new file replaced the link, not what it led to",)


def _can_seek(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _taken(path: str) -> RequestError:
    return RequestError(f"{path!r} exists", hint="--overwrite replaces it once the new file is complete")
