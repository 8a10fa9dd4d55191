"""What a guest gets done while it is saved, seen from outside: it counts the pages that it writes, in memory we share.

::

    1 s before | the run             | 1 s after
      pace        lost = time - work / pace    pace

Looked at about a thousand times a second by a thread of the runner, which otherwise waits for the run. A guest that is
started from a file goes on counting where the one that was saved stood: its run is the start and SETTLING_SECONDS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.latency import bins_of
from parallel_fixedram.experiments.boot_sector import WORK_AT
from parallel_fixedram.experiments.results import Gaps
from parallel_fixedram.machines.qemu.monitor import Monitor

MARGIN_SECONDS = 1.0
"""How long it is looked at before and after a run."""
STEP_SECONDS = 0.01
"""Of ``GuestWork.steps``."""
SETTLING_SECONDS = 2.0
"""How long a guest that was started has to get up to its pace."""
_PERIOD_SECONDS = 0.0005

Counter = Callable[[], int]
"""What a guest has counted so far, 32 bits of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestWork:
    """What a guest got done."""

    lost: float
    """Seconds of its work, at its pace before and after, that it did not get done in the run; below 0 for a guest that
    was faster, as a processor may be that others use, too."""
    gap: float
    """Seconds, the longest time in which it got nothing done; never more than that."""
    steps: tuple[int, ...]
    """Pages written in each STEP_SECONDS, from MARGIN_SECONDS before the run on."""
    gaps: Gaps
    """In the run."""
    quiet: Gaps
    """Before and after it."""
    run: tuple[float, float]
    """When that was, seconds from the beginning of the first step on."""
    zero: float
    """That beginning, by ``time.perf_counter``."""


def shared_counter(ram: str) -> Counter:
    """The counter of a guest whose main memory is this file.

    Raises:
        HostError: that cannot be mapped.
    """
    try:
        fd = os.open(ram, os.O_RDONLY | os.O_CLOEXEC)
        try:
            page = os.fstat(fd).st_blksize  # of a memory file: its pages may be huge
            memory = mmap.mmap(fd, page, prot=mmap.PROT_READ, offset=WORK_AT // page * page)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os(f"cannot map {ram!r}", error) from error
    counter = np.frombuffer(memory, np.uint32, 1, WORK_AT % page)
    return lambda: int(counter[0])


@contextlib.contextmanager
def counter_of(monitor: Monitor, pid: int) -> Iterator[Counter]:
    """The counter of any guest of a QEMU, as long as the block lasts.

    Raises:
        MachineError: QEMU does not say where its memory is.
        HostError: that may not be read.
    """
    said = str(monitor.execute("human-monitor-command", {"command-line": f"gpa2hva {WORK_AT:#x}"}))
    match = re.search(r"is (0x[0-9a-f]+)", said)
    if match is None:
        raise MachineError(f"QEMU {pid} does not say where its guest's memory is: {said.strip()!r}")
    address = int(match[1], 16)
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError.from_os(f"cannot read memory of process {pid}", error) from error
    try:
        yield lambda: int.from_bytes(os.pread(fd, 4, address), "little")
    finally:
        os.close(fd)


class GuestWatch:
    """Context manager around a run: the guest is looked at before, meanwhile and after.

    Args:
        counter: of the guest.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._seen: list[tuple[float, int]] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ends.wait(MARGIN_SECONDS)
        self.begins()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self._ends.is_set():
            self.is_over()
        self._ends.set()
        self._thread.join()

    def begins(self) -> None:
        """The run begins now, and not when the block did."""
        self._began = time.perf_counter()

    def is_over(self) -> None:
        """The run is over now, and not when the block is; returns when the guest, which must live, is not needed."""
        self._ended = time.perf_counter()
        self._ends.wait(MARGIN_SECONDS)
        self._ends.set()

    def moved(self, counter: Counter) -> None:
        """From now on another guest is looked at, which goes on from what this one has done."""
        done = self._seen[-1][1] - counter()
        self._counter = lambda: (done + counter()) & 0xFFFFFFFF

    def work(self) -> GuestWork:
        """What was seen; asked after the block.

        Raises:
            MachineError: the guest did nothing before or after the run.
        """
        times, counts = zip(*self._seen, strict=True)
        return judge(np.array(times), np.array(counts, np.uint32), self._began, self._ended)

    def _look(self) -> None:
        while not self._ends.is_set():
            self._seen.append((time.perf_counter(), self._counter()))
            time.sleep(_PERIOD_SECONDS)


def judge(times: NDArray[np.float64], counts: NDArray[np.uint32], began: float, ended: float) -> GuestWork:
    """What these looks at a guest say.

    Args:
        times: of each look, seconds, ascending.
        counts: what its counter was then, which may have passed its end.
        began: when the run did.
        ended: when it had.

    Raises:
        MachineError: it did nothing before, or after.
    """
    done = np.concatenate([[0], np.cumsum(np.diff(counts), dtype=np.int64)])  # unsigned differences pass the end
    at_begin, at_end = np.interp([began, ended], times, done)
    if not at_begin or at_end == done[-1]:
        raise MachineError("the guest that is to be watched does nothing")
    pace = (at_begin + done[-1] - at_end) / (began - times[0] + times[-1] - ended)
    changes = np.flatnonzero(np.diff(done)) + 1
    starts, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(done)]]) - 1
    grid = np.arange(times[0], times[-1], STEP_SECONDS)
    return GuestWork(
        lost=float(ended - began - (at_end - at_begin) / pace),
        gap=float((times[ends] - times[starts]).max()),
        steps=tuple(np.diff(np.interp(grid, times, done)).round().astype(int).tolist()),
        gaps=_gaps(times[changes], began, ended),
        quiet=_gaps(times[changes], began, ended, inside=False),
        run=(float(began - times[0]), float(ended - times[0])),
        zero=float(times[0]),
    )


def _gaps(progress: NDArray[np.float64], began: float, ended: float, *, inside: bool = True) -> Gaps:
    """Of looks that saw progress, the times from each to the next: those that touch the run, or the others.

    A run too short for any has a gap of 0.
    """
    first, second = progress[:-1], progress[1:]
    touches = (second > began) & (first < ended)
    found = (second - first)[touches if inside else ~touches]
    p50, p90, p99, longest = np.quantile(found, [0.5, 0.9, 0.99, 1]).tolist() if len(found) else [0.0] * 4
    return Gaps(p50=p50, p90=p90, p99=p99, longest=longest, bins=bins_of(found))
