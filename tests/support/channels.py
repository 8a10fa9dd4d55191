"""Channels for tests: in memory, failing, recording, deadly. What they note lies in memory that forks share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable
from mmap import mmap
from typing import Any, NamedTuple, Protocol

from parallel_fixedram.core.bitmap import Bits, Runs
from parallel_fixedram.core.errors import FormatError, HostError
from parallel_fixedram.core.latency import Bins
from parallel_fixedram.core.protocols import Channel, Pages

_EVENT = struct.Struct("<cQQQ")
_PAGE = 4096


class OneByOne:
    """``write_runs`` as a loop over pages that ends in ``write``: the naive twin of every faster way."""

    def write(self, offset: int, data: memoryview) -> None:
        raise NotImplementedError

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        for first, count in runs.tolist():
            found = [pages[page].tobytes() if readable[page] else bytes(_PAGE) for page in range(first, first + count)]
            self.write(offset + first * _PAGE, memoryview(b"".join(found)))

    def settle(self) -> None:
        pass

    def write_bins(self) -> Bins:
        return ()

    def another(self) -> OneByOne:
        return self

    def has_queue(self, channels: int) -> bool:
        return True


class MemoryChannel(OneByOne):
    """Bytes in shared memory instead of a file."""

    def __init__(self, size: int) -> None:
        self.memory = mmap(-1, size)

    def write(self, offset: int, data: memoryview) -> None:
        if offset + len(data) > len(self.memory):
            raise HostError("cannot write memory", errno=28)
        self.memory[offset : offset + len(data)] = data

    def read(self, offset: int, into: memoryview) -> None:
        if offset + len(into) > len(self.memory):
            raise FormatError("memory ends", offset=offset)
        into[:] = self.memory[offset : offset + len(into)]

    def punch(self, offset: int, length: int) -> None:
        self.memory[offset : offset + length] = bytes(length)

    def sync(self) -> None:
        """Memory is as stable as it gets."""


class WrappedChannel(OneByOne):
    """Passes everything on; base of the others."""

    def __init__(self, inner: Channel) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def write(self, offset: int, data: memoryview) -> None:
        self.inner.write(offset, data)

    def read(self, offset: int, into: memoryview) -> None:
        self.inner.read(offset, into)

    def punch(self, offset: int, length: int) -> None:
        self.inner.punch(offset, length)

    def sync(self) -> None:
        self.inner.sync()


class LateChannel(WrappedChannel):
    """Looks at pages only when it has to settle, as a device may; everything else happens at once.

    Attributes:
        begun: how many ``write_runs`` have not been settled.
    """

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self._begun: list[tuple[int, Pages, Runs, Bits]] = []

    @property
    def begun(self) -> int:
        return len(self._begun)

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        self._begun.append((offset, pages, runs.copy(), readable.copy()))

    def settle(self) -> None:
        for each in self._begun:
            super().write_runs(*each)
        self._begun = []


class SharedCounter:
    """Counts over all forks, up to ``limit``."""

    def __init__(self, limit: int = 1 << 16) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for start in range(0, limit, 4096):
            os.write(self._write, bytes(min(4096, limit - start)))

    def take(self) -> bool:
        """Whether there was one left to take."""
        try:
            return os.read(self._read, 1) == b"\0"
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class FailingChannel(WrappedChannel):
    """Fails for good with ``errno`` after ``successes`` calls of ``write``, ``punch`` and ``sync`` in all workers."""

    def __init__(self, inner: Channel, *, errno: int, successes: int = 0) -> None:
        super().__init__(inner)
        self._errno = errno
        self._left = SharedCounter(successes)

    def write(self, offset: int, data: memoryview) -> None:
        self._count("write")
        self.inner.write(offset, data)

    def punch(self, offset: int, length: int) -> None:
        self._count("punch")
        self.inner.punch(offset, length)

    def sync(self) -> None:
        self._count("sync")
        self.inner.sync()

    def close(self) -> None:
        self._left.close()

    def _count(self, what: str) -> None:
        if not self._left.take():
            raise HostError(f"cannot {what}", errno=self._errno)


class Event(NamedTuple):
    """One call, as RecordingChannel noted it."""

    kind: str
    """``W`` write, ``P`` punch, ``R`` read, ``S`` sync, ``N`` next round, ``!`` a broken promise."""
    offset: int
    length: int
    pid: int


class RecordingChannel(WrappedChannel):
    """Notes every call, and every write or punch that overlaps another one in flight, or another one of its round.

    Args:
        inner: where calls go.
        size: bytes that calls may reach.
        once: whether a page may be written or punched but once in a round.
    """

    def __init__(self, inner: Channel, size: int, *, once: bool = True) -> None:
        super().__init__(inner)
        self._in_flight = mmap(-1, -(-size // _PAGE))
        self._done = mmap(-1, -(-size // _PAGE))
        self._once = once
        self._lock = multiprocessing.get_context("fork").Lock()
        self._log = os.memfd_create("events", os.MFD_CLOEXEC)

    def next_round(self) -> None:
        """Forget what the last round wrote."""
        self._note(b"N", 0, 0)
        self._done[:] = bytes(len(self._done))

    def write(self, offset: int, data: memoryview) -> None:
        self._watched(b"W", offset, len(data), lambda: self.inner.write(offset, data))

    def punch(self, offset: int, length: int) -> None:
        self._watched(b"P", offset, length, lambda: self.inner.punch(offset, length))

    def read(self, offset: int, into: memoryview) -> None:
        self._note(b"R", offset, len(into))
        self.inner.read(offset, into)

    def sync(self) -> None:
        self._note(b"S", 0, 0)
        self.inner.sync()

    def events(self, kinds: str = "WP!") -> list[Event]:
        """Calls of these kinds in the order in which they began."""
        data = os.pread(self._log, os.fstat(self._log).st_size, 0)
        found = [Event(kind.decode(), *rest) for kind, *rest in _EVENT.iter_unpack(data)]
        return [event for event in found if event.kind in kinds]

    def close(self) -> None:
        os.close(self._log)

    def _note(self, kind: bytes, offset: int, length: int) -> None:
        os.write(self._log, _EVENT.pack(kind, offset, length, os.getpid()))

    def _watched(self, kind: bytes, offset: int, length: int, call: Callable[[], None]) -> None:
        pages = slice(offset // _PAGE, -(-(offset + length) // _PAGE))
        with self._lock:
            self._note(kind, offset, length)
            # a worker may punch what it has just bridged as a gap: only two writes of a page are one too many
            if any(self._in_flight[pages]) or (self._once and kind == b"W" and any(self._done[pages])):
                self._note(b"!", offset, length)
            self._in_flight[pages] = b"\1" * (pages.stop - pages.start)
        call()
        with self._lock:
            self._in_flight[pages] = bytes(pages.stop - pages.start)
            if kind == b"W":
                self._done[pages] = b"\1" * (pages.stop - pages.start)


class HookChannel(WrappedChannel):
    """Calls ``hook`` in the worker before a write that covers byte ``offset``.

    Args:
        inner: where calls go.
        offset: the place.
        hook: what to call.
        skip: how many such writes pass first, counted over all workers.
        times: before how many writes it is called then.
    """

    def __init__(
        self, inner: Channel, offset: int, hook: Callable[[], object], *, skip: int = 0, times: int = 1
    ) -> None:
        super().__init__(inner)
        self._offset = offset
        self._hook = hook
        self._skip = SharedCounter(skip)
        self._left = SharedCounter(times)

    def write(self, offset: int, data: memoryview) -> None:
        if offset <= self._offset < offset + len(data) and not self._skip.take() and self._left.take():
            self.hooked(offset, data)
        self.inner.write(offset, data)

    def hooked(self, offset: int, data: memoryview) -> None:
        """What happens at the place."""
        self._hook()

    def close(self) -> None:
        self._skip.close()
        self._left.close()


class AfterChannel(HookChannel):
    """Calls ``hook`` after the write, before anybody does anything else with the pages."""

    def hooked(self, offset: int, data: memoryview) -> None:
        self.inner.write(offset, data)
        self._hook()


class DeadlyChannel(HookChannel):
    """Sends its worker ``signum`` in the middle of a write that covers byte ``offset``, as HookChannel does.

    Attributes:
        died: time.monotonic() of the last death, for those who share memory with the worker; 0 before.
    """

    def __init__(
        self, inner: Channel, offset: int, *, signum: int = signal.SIGKILL, skip: int = 0, times: int = 1
    ) -> None:
        super().__init__(inner, offset, lambda: None, skip=skip, times=times)
        self._signum = signum
        self._time = mmap(-1, 8)

    @property
    def died(self) -> float:
        return float(struct.unpack("d", self._time[:])[0])

    def hooked(self, offset: int, data: memoryview) -> None:
        self.inner.write(offset, data[: len(data) // 2])
        self._time[:] = struct.pack("d", time.monotonic())
        os.kill(os.getpid(), self._signum)


Wrap = Callable[[Any], Channel]
"""Makes one channel of another."""


class Through(Protocol):
    """The fixture ``through`` of the engine's tests."""

    def __call__(self, direct: Wrap | None = None, *, buffered: Wrap | None = None) -> list[Any]:
        """From now on files are written through the channels that these make of them; returns those that were made.

        Args:
            direct: makes the one for direct I/O, which then every file system has.
            buffered: makes the one for all the rest.
        """
