"""Linux AIO: many direct writes in flight from one process, begun with one system call.

::

    begin(places, addresses, lengths) --io_submit--> kernel --> device
    settle()                          <-io_getevents-- results

A synchronous direct write waits for the device before the next one starts, which costs more than the write itself when
it is small. Linux AIO (io_submit(2)) is older than io_uring and allowed in more sandboxes, and for O_DIRECT into
allocated space it does all that is needed here. Structures are those of linux/aio_abi.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.latency import LatencyCounter

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
"""System call numbers of io_setup, io_destroy, io_getevents and io_submit."""

IOCB = np.dtype(
    [
        ("data", "<u8"),
        ("key", "<u4"),
        ("rw_flags", "<i4"),
        ("opcode", "<u2"),
        ("reqprio", "<i2"),
        ("fildes", "<u4"),
        ("buf", "<u8"),
        ("nbytes", "<u8"),
        ("offset", "<i8"),
        ("reserved2", "<u8"),
        ("flags", "<u4"),
        ("resfd", "<u4"),
    ]
)
IO_EVENT = np.dtype([("data", "<u8"), ("obj", "<u8"), ("res", "<i8"), ("res2", "<i8")])
IOVEC = np.dtype([("base", "<u8"), ("length", "<u8")])
IOCB_CMD_PWRITEV = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Numbers = NDArray[np.int64]


class WriteFailed(OSError):
    """A write that failed, perhaps begun by an earlier call.

    Attributes:
        offset: where in the file, bytes.
    """

    def __init__(self, code: int, offset: int) -> None:
        super().__init__(code, os.strerror(code))
        self.offset = offset


def _call(index: int, *arguments: Any) -> int:
    """One of the four system calls, again after a signal.

    Raises:
        OSError: it failed; ENOSYS also on a machine whose numbers are not known here.
    """
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while True:
        result = int(_libc.syscall(numbers[index], *arguments))
        if result >= 0:
            return result
        if (code := ctypes.get_errno()) != errno.EINTR:
            raise OSError(code, os.strerror(code))


def is_available(requests: int) -> bool:
    """Whether the kernel lets us have so many writes in flight.

    Asked without making a queue: to give one back takes tens of milliseconds.
    """
    try:
        _call(0, ctypes.c_long(0), ctypes.byref(ctypes.c_ulong(0)))
    except OSError as error:
        if error.errno != errno.EINVAL:  # "no queue of no length" is what who may have one is told
            return False
    try:
        numbers = [int(Path(f"/proc/sys/fs/{name}").read_text()) for name in ("aio-nr", "aio-max-nr")]
    except (OSError, ValueError):
        return True
    return numbers[0] + requests <= numbers[1]


class Queue:
    """Gathering writes in flight on one descriptor; used by the process that made it only.

    Args:
        fd: descriptor with O_DIRECT, borrowed.
        depth: most writes in flight, at least 1.
        times: counts how long each is in flight; None to count nothing.

    Raises:
        OSError: the kernel has no AIO, or has no more of it to give (``fs.aio-max-nr``).
    """

    def __init__(self, fd: int, depth: int, times: LatencyCounter | None = None) -> None:
        self._fd = fd
        self._depth = depth
        self._context = ctypes.c_ulong(0)
        _call(0, ctypes.c_long(depth), ctypes.byref(self._context))
        self._events = np.empty(depth, IO_EVENT)
        self._offsets: Numbers = np.zeros(depth, np.int64)
        self._lengths: Numbers = np.zeros(depth, np.int64)
        self._times, self._begun = times, np.zeros(depth)
        self._free = list(range(depth))

    @property
    def in_flight(self) -> int:
        """How many writes are under way."""
        return self._depth - len(self._free)

    def begin(
        self, offsets: Numbers, lengths: Numbers, vectors: NDArray[Any], firsts: Numbers, counts: Numbers
    ) -> None:
        """Begin as many writes as there are offsets, waiting for earlier ones where the queue is full.

        Args:
            offsets: where each goes, bytes.
            lengths: bytes of each.
            vectors: pieces of memory (IOVEC), which stay as they are until ``settle``.
            firsts: which piece each write begins with.
            counts: how many pieces each write has.

        Raises:
            WriteFailed: one of these, or of those before.
        """
        requests = np.zeros(len(offsets), IOCB)
        requests["opcode"] = IOCB_CMD_PWRITEV
        requests["fildes"] = self._fd
        requests["buf"] = vectors.ctypes.data + firsts * IOVEC.itemsize
        requests["nbytes"] = counts
        requests["offset"] = offsets
        done = 0
        while done < len(requests):
            if not self._free:
                self._reap(1)
            room, begun = min(len(self._free), len(requests) - done), time.perf_counter()
            batch = requests[done : done + room]
            slots = self._free[-room:]
            batch["data"] = slots
            pointers = batch.ctypes.data + np.arange(room, dtype=np.uint64) * np.uint64(IOCB.itemsize)
            try:
                taken = _call(3, self._context, ctypes.c_long(room), ctypes.c_void_p(pointers.ctypes.data))
            except OSError as error:
                if error.errno == errno.EAGAIN and self.in_flight:
                    self._reap(1)
                    continue
                raise WriteFailed(error.errno or 0, int(offsets[done])) from error
            used = slots[:taken]
            self._offsets[used] = offsets[done : done + taken]
            self._lengths[used] = lengths[done : done + taken]
            self._begun[used] = begun
            self._free = self._free[:-room] + slots[taken:]
            done += taken

    def settle(self) -> None:
        """Return when nothing is in flight any more.

        Raises:
            WriteFailed: one of them did.
        """
        while self.in_flight:
            self._reap(self.in_flight)

    def close(self) -> None:
        """Wait for what is in flight and give the queue back."""
        _call(1, self._context)

    def _reap(self, least: int) -> None:
        got = _call(
            2,
            self._context,
            ctypes.c_long(least),
            ctypes.c_long(self._depth),
            ctypes.c_void_p(self._events.ctypes.data),
            ctypes.c_void_p(None),
        )
        events = self._events[:got]
        slots = events["data"].astype(np.int64)
        self._free += slots.tolist()
        if self._times:
            self._times.note_all(time.perf_counter() - self._begun[slots])
        wrong = np.flatnonzero(events["res"] != self._lengths[slots])
        if len(wrong):
            result, offset = int(events["res"][wrong[0]]), int(self._offsets[slots[wrong[0]]])
            # a direct write that stops before its end stops for want of space, and says no more than that
            raise WriteFailed(-result if result < 0 else errno.ENOSPC, offset)
