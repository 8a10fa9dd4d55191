"""Linux AIO: one process has many direct writes in flight, and submits them with one system call.

::

    begin(places, addresses, lengths) --io_submit--> kernel --> device
    settle()                          <-io_getevents-- results

A synchronous direct write waits for the device before the next one starts; if it is small, the wait costs more than the
write. Linux AIO (io_submit(2)) is older than io_uring and allowed in more sandboxes, and does all we need for O_DIRECT
into allocated space. Structures are those of linux/aio_abi.h.
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
"""Numbers of the system calls io_setup, io_destroy, io_getevents and io_submit."""

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
    """A write failed; it may have been submitted by an earlier call.

    Attributes:
        offset: where it goes in the file, bytes.
    """

    def __init__(self, code: int, offset: int) -> None:
        super().__init__(code, os.strerror(code))
        self.offset = offset


def _call(index: int, *arguments: Any) -> int:
    """Make one of the four system calls, and repeat it if a signal interrupts it.

    Raises:
        OSError: it failed; ENOSYS also on machines whose numbers we do not know.
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
    """Whether the kernel lets us have this many writes in flight.

    No queue is made to find out, because destroying one takes tens of milliseconds.
    """
    try:
        _call(0, ctypes.c_long(0), ctypes.byref(ctypes.c_ulong(0)))
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: we may make queues, just not an empty one
            return False
    try:
        numbers = [int(Path(f"/proc/sys/fs/{name}").read_text()) for name in ("aio-nr", "aio-max-nr")]
    except (OSError, ValueError):
        return True
    return numbers[0] + requests <= numbers[1]


class Queue:
    """Gathering writes in flight on one descriptor; only for the process that made it.

    Args:
        fd: descriptor with O_DIRECT, borrowed.
        depth: most writes in flight, at least 1.
        times: counts how long each is in flight; None to count nothing.

    Raises:
        OSError: the kernel has no AIO, or its limit is reached (``fs.aio-max-nr``).
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
        """Number of writes in flight."""
        return self._depth - len(self._free)

    def begin(
        self, offsets: Numbers, lengths: Numbers, vectors: NDArray[Any], firsts: Numbers, counts: Numbers
    ) -> None:
        """Submit a write for each offset, waiting for earlier ones whenever the queue is full.

        Args:
            offsets: where each goes in the file, bytes, shape (writes,).
            lengths: bytes of each, same shape.
            vectors: pieces of memory (IOVEC), shape (pieces,); the memory must not change until ``settle``.
            firsts: index of the first piece of each write.
            counts: number of pieces of each write.

        Raises:
            WriteFailed: one of these writes failed, or an earlier one.
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
                # the kernel copies requests and vectors now; only the pages have to stay as they are
                taken = _call(3, self._context, ctypes.c_long(room), ctypes.c_void_p(pointers.ctypes.data))
            except OSError as error:
                # the kernel has no room now, although the queue has
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
        """Wait until nothing is in flight.

        Raises:
            WriteFailed: a write failed.
        """
        while self.in_flight:
            self._reap(self.in_flight)

    def close(self) -> None:
        """Wait for what is in flight and destroy the queue."""
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
            # a short direct write means that space ran out; the kernel gives no other hint
            raise WriteFailed(-result if result < 0 else errno.ENOSPC, offset)
