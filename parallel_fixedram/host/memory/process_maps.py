"""What another process has mapped, and how to open the files behind it without asking the process."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import forked
from parallel_fixedram.host.processes.unseen import why_unseen

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_MAY_READ = "it takes CAP_SYS_PTRACE, or the same user and permission to ptrace (kernel.yama.ptrace_scope)"
_MAY_OPEN = (
    "it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, or a file that is open in the process and readable for us"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A line of /proc/PID/maps (Linux: Documentation/filesystems/proc.rst)."""

    start: int
    """First address."""
    end: int
    """Address after the last one."""
    permissions: str
    """As the kernel shows them, such as ``r-xp``."""
    shared: bool
    """Whether writes reach the file and everybody else who maps it."""
    offset: int
    """Where it starts in the file, bytes; 0 for anonymous memory."""
    device: int
    """Of the file, as ``st_dev``; 0 for anonymous memory."""
    inode: int
    """Of the file; 0 for anonymous memory."""
    path: str
    """As the kernel shows it; empty for most anonymous memory, and not always a path."""


def each_mapping(pid: int) -> Iterator[Mapping]:
    """The mappings of a process, ascending; read lazily.

    Raises:
        MachineError: the process has ended.
        HostError: we lack the right to look.
    """
    found = False
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                found = True
                yield _mapping(line)
        if not found:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # ended, but not reaped yet
    except OSError as error:
        raise refusal(pid, error, f"cannot read the memory map of process {pid}") from error


def read_maps(pid: int) -> list[Mapping]:
    """All mappings of a process; raises what ``each_mapping`` does."""
    return list(each_mapping(pid))


def check_rights(pid: int) -> None:
    """Check that we may copy the memory of the process, without touching any of it.

    Raises:
        MachineError: the process has ended.
        HostError: we may not.
    """
    try:
        linux.may_read_process(pid)
    except OSError as error:
        raise refusal(pid, error, f"cannot read memory of process {pid}") from error


def mapped_parts(pid: int, address: int, length: int) -> list[Mapping]:
    """The mappings that a piece of memory is in; several if parts of it were treated differently (madvise, mbind).

    Args:
        pid: the process.
        address: first address.
        length: bytes.

    Raises:
        HostError: nothing is mapped there, or more than one thing; or as for ``read_maps``.
    """
    end = address + length
    what = f"process {pid}: addresses {address:#x} to {end:#x}"
    if length <= 0 or address % mmap.PAGESIZE or length % mmap.PAGESIZE:
        raise HostError(f"{what} are not whole pages of {mmap.PAGESIZE} bytes")
    parts = [each for each in read_maps(pid) if each.start < end and each.end > address]
    gapless = all(one.end == other.start for one, other in pairwise(parts))
    if not parts or parts[0].start > address or parts[-1].end < end or not gapless:
        raise HostError(f"{what} are not mapped")
    if not all(_continues(one, other) for one, other in pairwise(parts)):
        raise HostError(f"{what} are not one piece of memory")
    return parts


def _continues(one: Mapping, other: Mapping) -> bool:
    if (one.shared, one.device, one.inode) != (other.shared, other.device, other.inode):
        return False
    return one.inode == 0 or other.offset == one.offset + one.end - one.start


def open_mapped_file(pid: int, mapping: Mapping) -> int:
    """A descriptor of the very file that is mapped, not of another one that has its name by now.

    Raises:
        MachineError: the process has ended.
        HostError: we may not open it in any way.
    """
    first: OSError | None = None
    exact = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    for path in (exact, *_open_files(pid), mapping.path):
        try:
            if path != exact and not _is_same(os.stat(path), mapping):
                continue
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a device may do something to it
                raise HostError(f"process {pid}: {mapping.path!r} is mapped and is not a regular file")
            fd = os.open(path, _READ)
        except OSError as error:
            first = first or error
            continue
        if path == exact or _is_same(os.fstat(fd), mapping):
            return fd
        linux.close(fd)
    reason = first or OSError(errno.EPERM, os.strerror(errno.EPERM))
    raise refusal(pid, reason, f"process {pid}: cannot open the mapped file {mapping.path!r}", hint=_MAY_OPEN)


def takes_protection(pid: int, address: int, length: int) -> bool:
    """Whether a piece of memory can be write-protected: this works for anonymous and shared memory, not for disk files.

    True also if that cannot be seen; then only trying it will tell. Source: Linux, include/linux/userfaultfd_k.h
    (vma_can_userfault).

    Raises:
        MachineError: the process has ended.
        HostError: nothing is mapped there, or more than one thing; or we lack the right to look.
    """
    first = mapped_parts(pid, address, length)[0]
    if first.inode:
        with contextlib.suppress(HostError, OSError):
            fd = open_mapped_file(pid, first)
            with linux.closing(fd):
                return linux.file_system_magic(fd) in (linux.TMPFS_MAGIC, linux.HUGETLBFS_MAGIC)
    return True


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):  # no right to look; the caller has other ways
        for name in os.listdir(f"/proc/{pid}/fd"):
            yield f"/proc/{pid}/fd/{name}"


def _is_same(status: os.stat_result, mapping: Mapping) -> bool:
    """Whether it is the file that is mapped. False on file systems whose ``st_dev`` differs from what the maps show:
    for those we need the right to open map_files."""
    return (status.st_dev, status.st_ino) == (mapping.device, mapping.inode)


def _mapping(line: str) -> Mapping:
    fields = line.rstrip("\n").split(maxsplit=5)
    start, end = (int(each, 16) for each in fields[0].split("-"))
    major, minor = (int(each, 16) for each in fields[3].split(":"))
    return Mapping(
        start=start,
        end=end,
        permissions=fields[1],
        shared=fields[1].endswith("s"),
        offset=int(fields[2], 16),
        device=os.makedev(major, minor),
        inode=int(fields[4]),
        path=fields[5] if len(fields) > 5 else "",
    )


def refusal(pid: int, error: OSError, what: str, *, hint: str = _MAY_READ) -> FixedRamError:
    """The error to raise for an OSError: a MachineError if the process has ended, otherwise a HostError.

    Args:
        pid: the process.
        error: what the system reported; for a process that has ended it may be EACCES or EPERM.
        what: what could not be done.
        hint: which right is missing, if that is the reason.
    """
    if error.errno == errno.ESRCH or forked.is_gone(pid):
        return MachineError(f"process {pid} has ended")
    if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOENT):
        return HostError.from_os(what, error)
    if unseen := why_unseen(pid):
        return HostError(f"{what}: {unseen[0]}", hint=unseen[1])
    return HostError.from_os(what, error, hint=hint)
