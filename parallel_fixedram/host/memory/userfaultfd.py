"""Userfaultfd: writes into memory of a process wait until the holder of this descriptor lets them pass.

::

    register(start, length)      from here on the memory can be protected, and its changes are reported
    protect(start, length)       a write there waits, by the process or by the kernel for it ......  read() -> PageFault
    unprotect(start, length)     the write goes on, or never waits
    unregister(start, length)    as unprotect, and nothing is reported any more
    close()                      as unregister, everywhere; the end of the process with the last copy does the same

A process that discards, moves or unmaps registered memory also waits, until the message about it is read; before that
nothing can be protected (EventWaiting). Facts: Linux, include/uapi/linux/userfaultfd.h,
Documentation/admin-guide/mm/userfaultfd.rst and mm/userfaultfd.c; tests/host/test_userfaultfd.py checks those that
matter.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Self

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.host import linux

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
"""Flags of every userfaultfd: without UFFD_USER_MODE_ONLY, so that writes by the kernel wait as well, and do not
fail."""

DEVICE = "/dev/userfaultfd"
"""Whoever may open it gets a full userfaultfd, whatever vm.unprivileged_userfaultfd says (Linux 6.1)."""

USERFAULTFD_IOC_NEW = 0xAA00
"""ioctl of that device: a userfaultfd of the calling process; the argument is ``FLAGS``."""

MESSAGES = 64
"""Most messages that one ``read`` returns."""

_UFFD_API = 0xAA
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_UFFDIO_WAKE = 0x8010AA02
_UFFDIO_WRITEPROTECT = 0xC018AA06
_WRITEPROTECT_BIT = 1 << (_UFFDIO_WRITEPROTECT & 0xFF)
_MODE_WP = 2
"""UFFDIO_REGISTER_MODE_WP."""

_THREE = struct.Struct("<QQQ")
"""struct uffdio_api: api, features, ioctls; struct uffdio_writeprotect: start, length, mode."""
_REGISTER = struct.Struct("<QQQQ")
"""struct uffdio_register: start, length, mode, ioctls."""
_RANGE = struct.Struct("<QQ")
"""struct uffdio_range: start, length."""
_MESSAGE = struct.Struct("<B7xQQQ")
"""struct uffd_msg: event, and up to three numbers."""


class Feature(enum.IntFlag):
    """Features of a kernel (UFFD_FEATURE_...)."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    EVENT_UNMAP = 1 << 6
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13


ALL_FEATURES = Feature(sum(Feature))
"""What a capture needs: Linux 6.4."""


@dataclass(frozen=True, slots=True)
class PageFault:
    """A write waits."""

    address: int
    """Of the page, or of the huge page."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Memory was discarded, or is about to be: its owner waits until this is read."""

    start: int
    end: int
    """Address after the last one."""


@dataclass(frozen=True, slots=True)
class Remapped:
    """Memory was moved."""

    source: int
    target: int
    length: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Memory is gone."""

    start: int
    end: int
    """Address after the last one."""


Message = PageFault | Removed | Remapped | Unmapped


class EventWaiting(HostError):
    """A message about discarded, moved or unmapped memory waits; until it is read nothing can be protected."""


class Userfaultfd:
    """A userfaultfd of this process or of another one.

    Args:
        fd: its descriptor, not blocking; closed by ``close``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open_own(cls) -> Self:
        """A full one of this process.

        Raises:
            HostError: this kernel has none, or a right is missing.
        """
        try:
            return cls(linux.userfaultfd(FLAGS))
        except OSError as error:
            if error.errno != errno.EPERM:
                raise HostError.from_os("cannot get a userfaultfd", error) from error
        device = open_device()
        try:
            return cls(fcntl.ioctl(device, USERFAULTFD_IOC_NEW, FLAGS))
        except OSError as error:
            raise HostError.from_os(f"cannot get a userfaultfd from {DEVICE}", error) from error
        finally:
            linux.close(device)

    def enable(self) -> None:
        """Agree with the kernel on features and events; once, before anything else.

        Raises:
            HostError: the kernel lacks a feature.
        """
        try:
            fcntl.ioctl(self._fd, _UFFDIO_API, _THREE.pack(_UFFD_API, ALL_FEATURES, 0))
        except OSError as error:
            if missing := missing_features() if error.errno == errno.EINVAL else ():
                raise _lacks(missing) from error
            raise HostError.from_os("cannot set up a userfaultfd", error) from error

    def register(self, start: int, length: int) -> None:
        """Begin to watch memory, which is not protected yet.

        Args:
            start: address, a multiple of the memory's page size.
            length: bytes, also such a multiple.

        Raises:
            HostError: the memory is watched already, or cannot be watched.
            MachineError: the process has ended.
        """
        argument = bytearray(_REGISTER.pack(start, length, _MODE_WP, 0))
        what = f"cannot watch memory at {start:#x}"
        try:
            fcntl.ioctl(self._fd, _UFFDIO_REGISTER, argument)
        except OSError as error:
            match error.errno:
                case errno.EBUSY:
                    raise HostError(f"{what}: somebody else watches this memory") from error
                case errno.EINVAL:
                    raise HostError(f"{what}: this memory cannot be write-protected") from error
            raise self._failure(what, error) from error
        if not _REGISTER.unpack(argument)[3] & _WRITEPROTECT_BIT:
            self.unregister(start, length)
            raise HostError(f"{what}: this memory cannot be write-protected")

    def protect(self, start: int, length: int) -> None:
        """From now on writes wait, including writes to pages that were never touched.

        Raises:
            EventWaiting: a message has to be read first.
            HostError: the memory is not registered, or no longer there.
            MachineError: the process has ended.
        """
        try:
            fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, _THREE.pack(start, length, 1))
        except OSError as error:
            raise self._failure(f"cannot protect memory at {start:#x}", error) from error

    def unprotect(self, start: int, length: int) -> None:
        """Let writes pass, including those that wait; raises what ``protect`` does."""
        try:
            fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, _THREE.pack(start, length, 0))
        except OSError as error:
            raise self._failure(f"cannot let go of memory at {start:#x}", error) from error

    def unregister(self, start: int, length: int) -> None:
        """Let writes pass and stop watching; meanwhile the process's memory map is locked.

        Raises:
            HostError: the memory is no longer there.
            MachineError: the process has ended.
        """
        try:
            fcntl.ioctl(self._fd, _UFFDIO_UNREGISTER, _RANGE.pack(start, length))
            fcntl.ioctl(self._fd, _UFFDIO_WAKE, _RANGE.pack(start, length))  # the kernel itself does not
        except OSError as error:
            raise self._failure(f"cannot stop watching memory at {start:#x}", error) from error

    def read(self) -> list[Message]:
        """The messages that have arrived, 64 at most; empty if there are none. A fault is reported only once.

        Raises:
            HostError: the kernel reports an event that we did not ask for.
        """
        try:
            return [_message(*fields) for fields in _MESSAGE.iter_unpack(os.read(self._fd, MESSAGES * _MESSAGE.size))]
        except BlockingIOError:
            return []
        except OSError as error:
            raise HostError.from_os("cannot read a userfaultfd", error) from error

    def fileno(self) -> int:
        """The descriptor; it is readable (poll(2)) when messages wait."""
        return self._fd

    def detach(self) -> int:
        """Hand the descriptor to the caller, who closes it."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor; may be called more than once."""
        if self._fd >= 0:
            linux.close(self._fd)
            self._fd = -1

    def _failure(self, what: str, error: OSError) -> FixedRamError:
        if error.errno == errno.EAGAIN:
            return EventWaiting.from_os(what, error)
        if error.errno == errno.ESRCH or (error.errno == errno.ENOMEM and self._has_ended()):
            return MachineError(f"{what}: the process has ended")
        return HostError.from_os(what, error)

    def _has_ended(self) -> bool:
        """Registering fails with ENOMEM if the process has ended; protecting says ESRCH, before it checks the
        address."""
        try:
            fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, _THREE.pack(1 << 46, 1 << 21, 0))
        except OSError as error:
            return error.errno == errno.ESRCH
        return False


def open_device() -> int:
    """A descriptor of /dev/userfaultfd, with which any process can make a full userfaultfd of its own.

    Raises:
        HostError: there is none, or it may not be opened.
    """
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = f"it takes CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd = 1, or the right to open {DEVICE}"
        raise HostError.from_os(f"cannot get a userfaultfd: {DEVICE}", error, hint=hint) from error


def is_for_everybody() -> bool:
    """Whether any process may have a full userfaultfd (vm.unprivileged_userfaultfd)."""
    try:
        with open("/proc/sys/vm/unprivileged_userfaultfd", "rb") as file:
            return file.read().strip() == b"1"
    except OSError:
        return False


def missing_features(wanted: Feature = ALL_FEATURES) -> tuple[Feature, ...]:
    """The features that this kernel lacks; no right is needed to ask.

    Raises:
        HostError: it has no userfaultfd at all, or a sandbox forbids it.
    """
    try:
        fd = linux.userfaultfd(FLAGS | _UFFD_USER_MODE_ONLY)  # to be asked, never to watch anything
    except OSError as error:
        raise HostError.from_os("cannot get a userfaultfd", error) from error
    try:
        answer = fcntl.ioctl(fd, _UFFDIO_API, _THREE.pack(_UFFD_API, 0, 0))
    except OSError as error:
        raise HostError.from_os("cannot set up a userfaultfd", error) from error
    finally:
        linux.close(fd)
    return tuple(wanted & ~Feature(_THREE.unpack(answer)[1] & ALL_FEATURES))


def _lacks(missing: tuple[Feature, ...]) -> HostError:
    names = ", ".join(f"UFFD_FEATURE_{each.name}" for each in missing)
    return HostError(f"this kernel has no {names}", hint="Linux 6.4 or later is needed")


def _message(event: int, first: int, second: int, third: int) -> Message:
    match event:
        case 0x12:  # UFFD_EVENT_PAGEFAULT: flags, address
            return PageFault(second)
        case 0x15:  # UFFD_EVENT_REMOVE
            return Removed(first, second)
        case 0x16:  # UFFD_EVENT_UNMAP
            return Unmapped(first, second)
        case 0x14:  # UFFD_EVENT_REMAP
            return Remapped(first, second, third)
    raise HostError(f"a userfaultfd reports an event {event:#x}, which was not asked for")
