"""Files that another process has open for reading and writing, and how to sync them without its help.

::

    us -- fork --> a process of its own:  /proc/PID/fd/N opened anew, fdatasync, all again until that is short
       <-- pipe -- which file it is at, which one failed, done                 |
       -- SIGKILL when time is up; nobody waits for its end ------------------>+

If a device hangs, whoever waits for it cannot be killed. So everything that touches one of the files happens in a
process that holds nothing of ours. Opened by its descriptor, it is the very file, whatever its name means by now or in
the other process's mount namespace. It is opened anew and not duplicated: the kernel reports a write error once for
each open file description, and with a duplicate we would take the report from the process that needs it (Linux:
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
"""After a round of syncs that took no longer than this, little is left to write."""

MOST_ROUNDS = 5
"""A process that writes faster than its device syncs would need rounds without end."""

_RECORD = struct.Struct("=ii")
"""Descriptor of a file, and 0 if it is next or the errno if it failed. A pipe passes so few bytes on in one piece."""

_DONE = (-1, 0)
_END_SECONDS = 1.0


def written_files(pid: int) -> dict[int, str]:
    """Files that the process has open for reading and writing and has not mapped.

    This leaves out logs, which are opened for writing only, and files that serve as memory, which are mapped. Devices
    of any kind may be included.

    Returns:
        The path as the kernel shows it, by descriptor.

    Raises:
        MachineError: the process has ended.
        HostError: we lack the right to look.
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
    """The files and block devices that a process has open now, to be looked up by the names that it uses for them.

    Raises:
        MachineError: the process has ended.
        HostError: we lack the right to look.
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
        """The absolute path that leads to an open file from here; None if that is not certain.

        Args:
            name: the process's name for it: absolute, or relative to a folder that it once was in.
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
"""Device and inode of a file; or 0 and the device number of a block device, which may have several names."""


def _key(path: str) -> _Key | None:
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        return 0, status.st_rdev
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _is_written(pid: int, number: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
        flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), os.O_RDONLY)
    return flags & os.O_ACCMODE == os.O_RDWR


def sync_open_files(
    pid: int, files: Mapping[int, str], seconds: float, *, short_seconds: float = SHORT_SECONDS
) -> list[str]:
    """Sync files that another process has open, again and again until a round is short, at most ``MOST_ROUNDS`` times.

    Args:
        pid: the process.
        files: as returned by ``written_files``. What is in memory, or neither file nor block device, is skipped.
        seconds: how long it may take.
        short_seconds: how long a round may take that is the last one.

    Returns:
        A sentence for each file that could not be synced, with the reason.

    Raises:
        HostError: no process could be started.
    """
    notes: list[str] = []
    path, deadline, poll = next(iter(files.values()), ""), time.monotonic() + seconds, select.poll()
    with _syncing(pid, list(files), short_seconds) as pipe:
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
def _syncing(pid: int, numbers: Sequence[int], short_seconds: float) -> Iterator[int]:
    """Run the process that syncs; yields the pipe on which it reports its progress."""
    child, us = 0, os.getpid()
    with contextlib.ExitStack() as stack:
        try:
            ours, theirs = os.pipe()
            stack.callback(os.close, ours)
            try:
                with signals.held():
                    child = os.fork()
                    if child == 0:
                        _sync(pid, numbers, short_seconds, theirs, us)
                    stack.callback(forked.leave, child, _END_SECONDS)
                    stack.callback(forked.kill, child)
            finally:
                os.close(theirs)
        except OSError as error:
            raise HostError.from_os("cannot start the process that syncs disks", error) from error
        yield ours


def _sync(pid: int, numbers: Sequence[int], short_seconds: float, pipe: int, parent: int) -> NoReturn:
    """The body of that process."""
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
            if time.monotonic() - started < short_seconds:
                break
        os.write(pipe, _RECORD.pack(*_DONE))
    finally:
        os._exit(0)


@contextlib.contextmanager
def _telling(pipe: int, number: int) -> Iterator[None]:
    """Tell the parent which file is next, and whether it failed."""
    os.write(pipe, _RECORD.pack(number, 0))
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOENT:  # closed meanwhile
            os.write(pipe, _RECORD.pack(number, error.errno or errno.EIO))


def _open(path: str, others: Collection[int]) -> int | None:
    """Open the file unless it is open already or has no place on a disk."""
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):  # opening others may have side effects
        return None
    if any(os.path.samestat(status, os.fstat(fd)) for fd in others):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if linux.is_tmpfs(fd) or linux.is_hugetlbfs(fd):
        os.close(fd)
        return None
    return fd
