"""FileChannel: a seekable file as a Channel. Also functions that open files, and find the data ranges of one.

Offsets are absolute, short writes are continued, and no file position is used: any number of processes may share one
descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import Bits, Runs
from parallel_fixedram.core.errors import FormatError, HostError, RequestError, unopened
from parallel_fixedram.core.latency import Bins, LatencyCounter
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.anonymous import anonymous_memory

_MAX_TRANSFER = 0x7FFFF000  # Linux never moves more in one call
_MAX_PIECES = 1024  # IOV_MAX
_ZEROS_LENGTH = 1 << 20


class FileChannel:
    """A regular file as a Channel.

    Args:
        fd: descriptor, borrowed; if it has O_DIRECT set, the caller has to align every transfer.
        name: the file's name in messages.

    Attributes:
        write_times: counts how long each write takes, in all channels that share it; None where nobody asks.
    """

    write_times: LatencyCounter | None = None
    _zeroed = memoryview(b"")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` (Channel.write)."""
        while data:
            started = time.perf_counter()
            try:
                done = os.pwrite(self.fd, data[:_MAX_TRANSFER], offset)
            except OSError as error:
                raise HostError.from_os(f"cannot write {self.name!r} at {offset:#x}", error) from error
            self._took(started)
            if done == 0:
                raise HostError(f"cannot write {self.name!r} at {offset:#x}: nothing was written")
            data, offset = data[done:], offset + done

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        """Write runs of pages, one after another (Channel.write_runs)."""
        size = pages.shape[1] * pages.itemsize
        view = pages.data.cast("B")
        starts, lengths, firsts, counts = segments(runs, readable)
        if len(starts) == len(runs) and readable[starts].all():
            for first, count in runs.tolist():
                self.write(offset + first * size, view[first * size : (first + count) * size])
            return
        zeros, held = self._zeros(len(view)), readable[starts].tolist()
        pieces = [
            (view if full else zeros)[start : start + length]
            for start, length, full in zip((starts * size).tolist(), (lengths * size).tolist(), held, strict=True)
        ]
        for start, first, count in zip((runs[:, 0] * size).tolist(), firsts.tolist(), counts.tolist(), strict=True):
            self._write_gathered(offset + start, pieces[first : first + count])

    def settle(self) -> None:
        """Nothing to wait for (Channel.settle)."""

    def another(self) -> FileChannel:
        """The same file as a channel with writes in flight of its own; here none ever are."""
        return self

    def has_queue(self, channels: int) -> bool:
        """Whether this many channels may have all their writes in flight; here none ever are."""
        return True

    def write_bins(self) -> Bins:
        """How long writes took since this was asked last (Channel.write_bins)."""
        return self.write_times.taken() if self.write_times else ()

    def _took(self, started: float) -> None:
        if self.write_times:
            self.write_times.note(time.perf_counter() - started)

    def _zeros(self, length: int) -> memoryview:
        """At least ``length`` zeros. They are kept, because mapping and touching them costs more than a small write."""
        if len(self._zeroed) < length:
            self._zeroed = memoryview(anonymous_memory(length))
        return self._zeroed

    def _write_gathered(self, offset: int, pieces: list[memoryview]) -> None:
        while pieces:
            started = time.perf_counter()
            try:
                done = os.pwritev(self.fd, pieces[:_MAX_PIECES], offset)
            except OSError as error:
                raise HostError.from_os(f"cannot write {self.name!r} at {offset:#x}", error) from error
            self._took(started)
            if done == 0:
                raise HostError(f"cannot write {self.name!r} at {offset:#x}: nothing was written")
            offset += done
            while pieces and done >= len(pieces[0]):
                done -= len(pieces.pop(0))
            if done:
                pieces[0] = pieces[0][done:]

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of ``into`` (Channel.read)."""
        while into:
            try:
                done = os.preadv(self.fd, [into[:_MAX_TRANSFER]], offset)
            except OSError as error:
                raise HostError.from_os(f"cannot read {self.name!r} at {offset:#x}", error) from error
            if done == 0:
                raise FormatError(f"{self.name!r} ends, expected {len(into)} more bytes", offset=offset)
            into, offset = into[done:], offset + done

    def punch(self, offset: int, length: int) -> None:
        """Make a hole, or write zeros where the file system has no holes (Channel.punch)."""
        try:
            linux.fallocate(self.fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise HostError.from_os(f"cannot punch a hole into {self.name!r} at {offset:#x}", error) from error
            zeros = memoryview(anonymous_memory(min(length, _ZEROS_LENGTH)))  # aligned for O_DIRECT
            while length:
                piece = min(length, len(zeros))
                self.write(offset, zeros[:piece])
                offset, length = offset + piece, length - piece

    def sync(self) -> None:
        """fsync(2), never retried: after an error the kernel drops the pages, and a second call would report success
        (Channel.sync)."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise HostError.from_os(f"cannot sync {self.name!r}", error) from error

    def size(self) -> int:
        """Bytes in the file, or of the block device."""
        try:
            return os.lseek(self.fd, 0, os.SEEK_END)  # fstat(2) gives 0 for a device
        except OSError as error:
            raise HostError.from_os(f"cannot look at {self.name!r}", error) from error

    def stat(self) -> os.stat_result:
        """The file's current fstat(2)."""
        try:
            return os.fstat(self.fd)
        except OSError as error:
            raise HostError.from_os(f"cannot look at {self.name!r}", error) from error

    def bytes_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, or fewer if the file ends there."""
        try:
            data = os.pread(self.fd, length, offset)
            while len(data) < length and (more := os.pread(self.fd, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise HostError.from_os(f"cannot read {self.name!r} at {offset:#x}", error) from error
        return data


class ReadBackChannel(FileChannel):
    """A channel that reads back what it writes. It is for bytes whose digest is computed from the file afterwards: a
    faulty write must not get a matching digest.

    Args:
        channel: does the writing.
    """

    def __init__(self, channel: FileChannel) -> None:
        super().__init__(channel.fd, channel.name)
        self._channel = channel

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``, read it back and compare (Channel.write).

        Raises:
            HostError: it cannot be written, or what is read back differs.
        """
        self._channel.write(offset, data)
        back = memoryview(bytearray(min(len(data), _ZEROS_LENGTH)))
        for start in range(0, len(data), _ZEROS_LENGTH):
            piece = data[start : start + _ZEROS_LENGTH]
            self.read(offset + start, back[: len(piece)])
            if piece.tobytes() != back[: len(piece)].tobytes():  # comparing bytes is far faster than comparing views
                raise HostError(f"what was written to {self.name!r} at {offset + start:#x} reads back differently")


def segments(runs: Runs, readable: Bits) -> tuple[NDArray[np.int64], ...]:
    """Cut runs wherever pages change between readable and not readable.

    Args:
        runs: first page and length of each, shape (runs, 2), ascending and disjoint.
        readable: 1 for every page that may be read, shape (pages,).

    Returns:
        First page of each segment; its length; index of each run's first segment; number of segments of each run.
    """
    begins, lengths = runs[:, 0], runs[:, 1]
    ends = begins + lengths
    turns = np.flatnonzero(readable[1:] != readable[:-1]) + 1
    # the run that begins at or before each turn. Before the first run that is -1, the last run, which no such turn is
    # inside of either
    run = np.searchsorted(begins, turns, "right") - 1
    turns = turns[(begins[run] < turns) & (turns < ends[run])] if len(runs) else turns[:0]
    if not len(turns):
        return begins, lengths, np.arange(len(runs)), np.ones(len(runs), np.int64)
    # a segment starts where a run begins and at each turn inside one; it ends where the next one starts, but for the
    # last of a run, which ends with the run
    starts = np.sort(np.concatenate((begins, turns)))
    firsts = np.searchsorted(starts, begins)
    counts = np.diff(np.append(firsts, len(starts)))
    stops = np.append(starts[1:], 0)
    stops[firsts + counts - 1] = ends
    return starts, stops - starts, firsts, counts


def open_readable(path: str, *, or_device: bool = False) -> int:
    """Open an existing file for reading; never blocks on a FIFO.

    Args:
        path: its path.
        or_device: accept a block device as well.

    Raises:
        RequestError: it does not exist, or is not a regular file.
        HostError: it cannot be opened.
    """
    return _open_seekable(path, os.O_RDONLY, or_device=or_device)


def open_writable(path: str, *, or_device: bool = False) -> int:
    """Like ``open_readable``, but for reading and writing in place."""
    return _open_seekable(path, os.O_RDWR, or_device=or_device)


def _open_seekable(path: str, flags: int, *, or_device: bool) -> int:
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except IsADirectoryError as error:
        raise RequestError(f"{path!r} is not a regular file") from error
    except OSError as error:
        raise unopened(f"cannot open {path!r}", error) from error
    try:
        mode = FileChannel(fd, path).stat().st_mode
        if not stat.S_ISREG(mode) and not (or_device and stat.S_ISBLK(mode)):
            raise RequestError(f"{path!r} is not a regular file")
    except BaseException:
        linux.close(fd)
        raise
    return fd


def data_end(fd: int, size: int) -> int:
    """The offset after the last data of a file of ``size`` bytes; ``size`` if the file system cannot tell."""
    low, high = 0, size  # invariant: if there is any data, the last of it ends in [low, high]
    while low < high:
        middle = (low + high) // 2
        try:
            low = max(os.lseek(fd, middle, os.SEEK_DATA), middle) + 1
        except OSError as error:
            if error.errno != errno.ENXIO:
                return size
            high = middle
    return low


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of [start, end) that are not holes, ascending; the whole range if the file system cannot tell."""
    position = start
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
            if data >= end:
                return
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end of the file
                return
            yield position, end
            return
        yield data, min(hole, end)
        position = hole
