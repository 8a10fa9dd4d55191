"""DirectChannel: a file that is written with O_DIRECT, many runs of pages in flight at once."""

from __future__ import annotations

import numpy as np

from parallel_fixedram.core.bitmap import Bits, Runs
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.save_options import QUEUE_DEPTH
from parallel_fixedram.host.files import aio
from parallel_fixedram.host.files.channel import FileChannel, segments


class DirectChannel(FileChannel):
    """A regular file with O_DIRECT as a Channel; the caller has to align every transfer.

    The queue belongs to the process that first writes runs, and ends with it. The kernel finishes a process's writes in
    flight before the process is gone.

    Args:
        fd: descriptor with O_DIRECT, borrowed.
        name: the file's name in messages.
        depth: most writes in flight; 0 to write one at a time.
    """

    _queue: aio.Queue | None = None

    def __init__(self, fd: int, name: str, depth: int = QUEUE_DEPTH) -> None:
        super().__init__(fd, name)
        self._depth = depth

    def another(self) -> DirectChannel:
        """The same file with a queue of its own."""
        other = DirectChannel(self.fd, self.name, self._depth)
        other.write_times = self.write_times
        return other

    def has_queue(self, channels: int) -> bool:
        """Whether the kernel lets this many processes have ``depth`` writes in flight each."""
        return self._depth == 0 or aio.is_available(self._depth * channels)

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        """Begin to write runs of pages (Channel.write_runs)."""
        if self._queue is None:
            if self._depth == 0:
                super().write_runs(offset, pages, runs, readable)
                return
            try:
                self._queue = aio.Queue(self.fd, self._depth, self.write_times)
            except OSError:
                super().write_runs(offset, pages, runs, readable)
                return
        size = pages.shape[1] * pages.itemsize
        starts, lengths, firsts, counts = segments(runs, readable)
        vectors = np.empty(len(starts), aio.IOVEC)
        vectors["base"] = pages.ctypes.data + starts * size
        vectors["length"] = lengths * size
        holes = readable[starts] == 0
        if holes.any():
            vectors["base"][holes] = np.frombuffer(self._zeros(len(pages) * size), np.uint8).ctypes.data
        try:
            self._queue.begin(offset + runs[:, 0] * size, runs[:, 1] * size, vectors, firsts, counts)
        except aio.WriteFailed as error:
            raise self._failed(error) from error

    def settle(self) -> None:
        """Wait until every run is written (Channel.settle)."""
        if self._queue is not None:
            try:
                self._queue.settle()
            except aio.WriteFailed as error:
                raise self._failed(error) from error

    def _failed(self, error: aio.WriteFailed) -> HostError:
        return HostError.from_os(f"cannot write {self.name!r} at {error.offset:#x}", error)
