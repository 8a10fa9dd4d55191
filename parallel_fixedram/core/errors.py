"""Every error this package raises on purpose.

::

    FixedRamError
    ├── RequestError             the request cannot be carried out as asked            exit 2
    │   ├── NoFileError          a name leads to nothing, or to no file                exit 2
    │   └── CapabilityError      refused by the capability gate                        exit 2
    ├── ContentsDiffer           two things that should be equal are not               exit 1
    │   └── InstantDiffers       a file and the RAM that was copied at its instant     exit 1
    ├── FormatError              the file is not what it should be                     exit 3
    ├── MachineError             the guest or its monitor said no, or went away        exit 4
    │   └── MachineChanged       its RAMBlocks or devices are not what they were       exit 4
    └── HostError                the operating system said no; keeps the errno         exit 5
        ├── WorkerError          worker processes died or stalled                      exit 5
        ├── SnapshotFailed       what a snapshot captured is worth nothing             exit 5
        └── DurabilityError      published, but whether it survives is not known       exit 6

The split is by who has to act: the caller, whoever made the file, the guest, or the host's administrator.
A message says where, what, what was expected and what was found, in lower case and without a full stop;
``hint`` is at most one more line that says what to do about it.
"""

from __future__ import annotations

from errno import EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR
from os import strerror  # a look-up in a table of libc's, nothing that touches the system

_WRONG_NAME = (ENOENT, ENOTDIR, EISDIR, ELOOP, ENAMETOOLONG)


class FixedRamError(Exception):
    """Base of all expected errors.

    Attributes:
        message: one line for people.
        hint: one more line that says what to do, or an empty string.
    """

    exit_code = 5

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(FixedRamError):
    """The request is contradictory, incomplete or impossible as asked; nothing was touched."""

    exit_code = 2


class NoFileError(RequestError):
    """A name leads to nothing, or to something that is no file; keeps the errno.

    Attributes:
        errno: the error number of the call.
    """

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(f"{message}: {os_message(errno)}" if errno else message, hint=hint)
        self.errno = errno


class CapabilityError(RequestError):
    """The capability gate refused; the message is QEMU's own sentence."""


class ContentsDiffer(FixedRamError):
    """Two things that should be equal are not."""

    exit_code = 1


class InstantDiffers(ContentsDiffer):
    """The file of an instant is not the RAM that was copied at that instant; the file has not been given its name.

    Attributes:
        pages: how many pages differ; 0 where it is something else.
    """

    def __init__(self, message: str, *, pages: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.pages = pages


class FormatError(FixedRamError):
    """The file is not what it should be.

    Attributes:
        offset: absolute file offset in bytes where the contradiction was seen, or None when it has no single place.
    """

    exit_code = 3

    def __init__(self, message: str, *, offset: int | None = None, hint: str = "") -> None:
        super().__init__(message if offset is None else f"at {offset:#x}: {message}", hint=hint)
        self.offset = offset

    def in_file(self, path: str) -> FormatError:
        """The same error, its message beginning with the file's name."""
        error = FormatError(f"{path!r} {self.message}", hint=self.hint)
        error.offset = self.offset
        return error


class MachineError(FixedRamError):
    """The guest, its process or its monitor refused, misbehaved or went away."""

    exit_code = 4


class MachineChanged(MachineError):
    """It is not what it was: RAMBlocks or devices came or went, or somebody acted on it; trying again may work."""


class HostError(FixedRamError):
    """A system call failed.

    Attributes:
        errno: the error number of the call, or 0 when there was none.
    """

    exit_code = 5

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(f"{message}: {os_message(errno)}" if errno else message, hint=hint)
        self.errno = errno

    @classmethod
    def from_any(cls, what: str, error: BaseException) -> HostError:
        """Wrap an error that nobody expected, as plainly as its kind allows; ``what`` says what was being done, or by
        whom."""
        match error:
            case MemoryError():
                return cls(what, errno=ENOMEM)
            case OSError(errno=int(number), filename=name):
                return cls(what if name is None else f"{what}: {name!r}", errno=number)
            case ImportError():
                inner: BaseException = error
                while before := inner.__cause__ or inner.__context__:
                    inner = before
                return cls(f"{what}: {_first_line(inner)}")
        return cls(f"{what}: unexpected {type(error).__name__}: {_first_line(error)}")

    @classmethod
    def from_os(cls, what: str, error: OSError, *, hint: str = "") -> HostError:
        """Wrap an OSError; ``what`` says which action failed and on what."""
        return cls(what, errno=error.errno or 0, hint=hint)


class WorkerError(HostError):
    """Worker processes died or stalled and none was left to take over their shards."""


class SnapshotFailed(HostError):
    """A snapshot could not begin, or its result is useless; the guest runs on. Another way of capture may work."""


class DurabilityError(HostError):
    """The file has its final name, but the last sync failed: a power cut may still take it away."""

    exit_code = 6


def unopened(what: str, error: OSError) -> NoFileError | HostError:
    """Why a file cannot be opened, or made: a wrong name is the caller's mistake, everything else is the host's
    failure.

    Args:
        what: which action failed, and on what.
        error: of open(2), stat(2) and the like.
    """
    if error.errno in _WRONG_NAME:
        return NoFileError(what, errno=error.errno)
    return HostError.from_os(what, error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def os_message(errno: int) -> str:
    """The system's text for an error number, in lower case like the rest of a message."""
    text = strerror(errno)
    return text[:1].lower() + text[1:]
