"""Files that another process has open to read and write, and how they get onto stable storage without its help.

::

    us -- fork --> a process of its own:  /proc/PID/fd/N opened anew, fdatasync, all again until that is short
       <-- pipe -- which file it is at, which one failed, done                 |
       -- SIGKILL when time is up; nobody waits for its end ------------------>+

A device that hangs holds whoever asks it for anything, beyond SIGKILL, so all that touches one of the files happens in
a process that holds nothing of ours. Opened by descriptor it is the very file, whatever its name means by now or in the
other process's mount namespace. It is opened anew, not duplicated: the kernel reports a write error once for every open
file, and through a duplicate we would take the report away from the process that has to hear it (Linux:
Documentation/core-api/errseq.rst).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import stat
import struct
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NoReturn

from parallel_fixedram.core.errors import HostError, os_message
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.process_maps import read_maps, refusal
from parallel_fixedram.host.processes import forked, signals

SHORT_SECONDS = 0.01
"""A round of syncs that takes no longer than this leaves little behind."""

MOST_ROUNDS = 5
"""Whoever writes faster than the device syncs is not waited for."""

_RECORD = struct.Struct("=ii")
"""Descriptor of the file that is next and 0, or what failed; a pipe passes on so few bytes as a whole."""

_DONE = (-1, 0)
_END_SECONDS = 1.0


def written_files(pid: int) -> dict[int, str]:
    """What the process has open to read and write, and does not map: the path as the kernel shows it, by descriptor.

    A log is only written. What is mapped is memory of the process, and no business of a disk. Devices of every kind may
    be among them.

    Raises:
        MachineError: the process has ended.
        HostError: no right to ask.
    """
    mapped = {each.path for each in read_maps(pid)}
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError as error:
        raise refusal(pid, error, f"cannot list the files that process {pid} has open") from error
    found = {}
    for number in numbers:
        with contextlib.suppress(OSError):  # closed meanwhile
            path = os.readlink(f"/proc/{pid}/fd/{number}")
            if path.startswith("/") and path not in mapped and _is_written(pid, number):
                found[int(number)] = path
    return found


class OpenFiles:
    """The files and block devices that a process has open now, found again by the names that it has for them.

    Raises:
        MachineError: the process has ended.
        HostError: no right to ask.
    """

    def __init__(self, pid: int) -> None:
        self._paths: dict[_Key, str] = {}
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # closed meanwhile
                    path = f"/proc/{pid}/fd/{number}"
                    if (key := _key(path)) is not None:
                        self._paths[key] = os.readlink(path)
        except OSError as error:
            raise refusal(pid, error, f"cannot list the files that process {pid} has open") from error

    def find(self, name: str) -> str | None:
        """The absolute path by which an open file is reached from here; None if that is not certain.

        Args:
            name: the process's own: absolute, or relative to a folder that it was in once.
        """
        if os.path.isabs(name):
            return name if self._holds(name) else None
        ends = f"/{os.path.normpath(name)}".replace("/..", "")
        found = [path for path in self._paths.values() if path.endswith(ends) and self._holds(path)]
        return found[0] if len(found) == 1 else None

    def _holds(self, path: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return _key(path) in self._paths
        return False


_Key = tuple[int, int]
"""Device and inode of a file; 0 and the device number of a block device, which may have several names."""


def _key(path: str) -> _Key | None:
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        return 0, status.st_rdev
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _is_written(pid: int, number: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
        flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), os.O_RDONLY)
    return flags & os.O_ACCMODE == os.O_RDWR


def sync_open_files(pid: int, files: Mapping[int, str], seconds: float) -> list[str]:
    """Sync files that another process has open; all again, up to ``MOST_ROUNDS`` times, until that is short.

    Args:
        pid: the process.
        files: as ``written_files`` has them; what is in memory, or neither file nor block device, is passed by.
        seconds: how long it may take.

    Returns:
        What could not be synced, and why: a sentence for each file.

    Raises:
        HostError: no process could be started.
    """
    notes: list[str] = []
    path, deadline, poll = next(iter(files.values()), ""), time.monotonic() + seconds, select.poll()
    with _syncing(pid, list(files)) as pipe:
        poll.register(pipe, select.POLLIN)
        while poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            if not (data := os.read(pipe, _RECORD.size)):
                return [*notes, f"{path!r} cannot be synced: the process that does so has ended"]
            number, error = record = _RECORD.unpack(data)
            if record == _DONE:
                return notes
            path = files[number]
            if error:
                notes.append(f"{path!r} cannot be synced: {os_message(error)}")
    return [*notes, f"{path!r} is not in sync after {seconds:g} s"]


@contextlib.contextmanager
def _syncing(pid: int, numbers: Sequence[int]) -> Iterator[int]:
    """A process that syncs; yields the pipe on which it says how far it is."""
    child, us = 0, os.getpid()
    with contextlib.ExitStack() as stack:
        try:
            ours, theirs = os.pipe()
            stack.callback(os.close, ours)
            try:
                with signals.held():
                    child = os.fork()
                    if child == 0:
                        _sync(pid, numbers, theirs, us)
                    stack.callback(forked.leave, child, _END_SECONDS)
                    stack.callback(forked.kill, child)
            finally:
                os.close(theirs)
        except OSError as error:
            raise HostError.from_os("cannot start the process that syncs disks", error) from error
        yield ours


def _sync(pid: int, numbers: Sequence[int], pipe: int, parent: int) -> NoReturn:
    """Be that process."""
    try:
        forked.settle_in(parent)
        gc.freeze()  # collecting what was inherited would copy all of it
        forked.keep_only({pipe})
        files: dict[int, int] = {}
        for number in numbers:
            with _telling(pipe, number):
                if (fd := _open(f"/proc/{pid}/fd/{number}", set(files.values()))) is not None:
                    files[number] = fd
                    linux.start_writeback(fd)  # several devices work at the same time
        for _ in range(MOST_ROUNDS):
            started = time.monotonic()
            for number in list(files):
                with _telling(pipe, number):
                    os.fdatasync(files[number])
                    continue
                del files[number]
            if time.monotonic() - started < SHORT_SECONDS:
                break
        os.write(pipe, _RECORD.pack(*_DONE))
    finally:
        os._exit(0)


@contextlib.contextmanager
def _telling(pipe: int, number: int) -> Iterator[None]:
    """Tell the parent what is next, and what failed."""
    os.write(pipe, _RECORD.pack(number, 0))
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOENT:  # closed meanwhile
            os.write(pipe, _RECORD.pack(number, error.errno or errno.EIO))


def _open(path: str, others: Collection[int]) -> int | None:
    """Open what has a place on a disk and is not open yet."""
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):  # opening others may do something
        return None
    if any(os.path.samestat(status, os.fstat(fd)) for fd in others):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if linux.is_tmpfs(fd) or linux.is_hugetlbfs(fd):
        os.close(fd)
        return None
    return fd
