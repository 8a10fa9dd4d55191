"""Calibration of writes: trials in a file without a name, by the same kind of workers as in a save.

What is written is a pattern: few or many runs of one page, or whole windows. Workers write it through the page cache or
bypassing it, and after each trial the file is synced. The sync is timed separately, because a device with a volatile
cache does most of its work only then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import count

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.shards import WINDOW_PAGES, WINDOW_PAGES_DIRECT, Shard
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.window import covered, nonzero_pages
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.direct_channel import DirectChannel

BUFFERED, DIRECT = 0, 1
"""Indices of the jobs that write through the page cache, and bypassing it."""
JOB_WINDOW_PAGES = (WINDOW_PAGES, WINDOW_PAGES_DIRECT)
"""Pages in a window of each job."""


class Pattern(IntEnum):
    """What is written in a trial. In a shard it takes the place of the block."""

    SMALL = 0
    """Runs of one page."""
    LARGE = 1
    """Whole windows."""
    COMPUTING = 2
    """Whole windows, with computing meanwhile."""
    SPARSE = 3
    """Few runs of one page, to tell what a window takes besides its calls."""
    LONG = 4
    """Many windows: the fixed part of a sync is the same after few and many, so the difference is the cost of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How much a pattern writes. All of them together, with all repetitions, write about half a GiB."""

    windows: int
    stride: int | None = None
    """One page in this many is written, as a run of its own; None if windows are written whole."""
    repeats: int
    """Most repetitions."""

    def calls(self, job: int) -> int:
        """Number of writes in a window."""
        return JOB_WINDOW_PAGES[job] // self.stride if self.stride else 1

    def amount(self, job: int) -> tuple[int, int]:
        """Number of writes in the whole trial, and their bytes."""
        calls = self.windows * self.calls(job)
        pages = calls if self.stride else self.windows * JOB_WINDOW_PAGES[job]
        return calls, pages * TARGET_PAGE_SIZE


TRIALS = {
    Pattern.SMALL: Trial(windows=4, stride=8, repeats=2),
    Pattern.LARGE: Trial(windows=8, repeats=3),
    Pattern.COMPUTING: Trial(windows=8, repeats=3),
    Pattern.SPARSE: Trial(windows=16, stride=64, repeats=2),
    Pattern.LONG: Trial(windows=32, repeats=1),
}

_SLOT = max(each.windows for each in TRIALS.values()) * WINDOW_PAGES_DIRECT * TARGET_PAGE_SIZE
_SYNCS = 3
_ENOUGH_SECONDS = 0.15
"""A trial is not repeated after this time."""
_RESERVED, _RESERVED_STRIDE = 128, 8
"""Number of pages to reserve, and their distance, since neighbours would be one piece."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A Job that writes windows as a save does; the shard's block is the pattern, and its words are the windows."""

    channel: Channel
    pages: Pages
    window_pages: int
    staging: Staging | None = None
    """Where pages are copied to and written from; None to write them from where they are, by ``channel``."""

    def open(self) -> None:
        """Touch the pages (Job.open)."""
        self.pages.sum()
        if self.staging:
            self.staging.open()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run)."""
        pattern = Pattern(shard.block)
        stride = TRIALS[pattern].stride
        firsts = np.arange(0, self.window_pages, stride or self.window_pages, dtype=np.int64)
        runs = np.stack((firsts, np.full(len(firsts), 1 if stride else self.window_pages)), axis=1)
        tally, clock = Tally(), time.perf_counter
        first, end = shard.first_word * WORD_PAGES, (shard.first_word + shard.words) * WORD_PAGES
        readable = np.ones(self.window_pages, np.uint8)
        for page in range(first, end, self.window_pages):
            channel, pages = self.channel, self.pages[: self.window_pages]
            if self.staging:
                channel, spans = self.staging.next_channel(), covered(runs, self.window_pages)
                pages = self.staging.copy(pages, spans & readable, spans & (readable == 0))
            channel.write_runs(page * TARGET_PAGE_SIZE, pages, runs, readable)
            if pattern is Pattern.COMPUTING:
                started = clock()
                page_digests(pages, nonzero_pages(pages))
                tally.digest_seconds += clock() - started
        (self.staging or self.channel).settle()
        return tally


def writers(pages: Pages, buffered: FileChannel, direct: DirectChannel | None) -> list[Writer]:
    """The jobs: BUFFERED, and DIRECT if the file can be written with O_DIRECT."""
    jobs = [Writer(buffered, pages, WINDOW_PAGES)]
    if direct is not None:
        staging = Staging(direct.another, TARGET_PAGE_SIZE, window_pages=WINDOW_PAGES_DIRECT)
        jobs.append(Writer(direct, pages, WINDOW_PAGES_DIRECT, staging))
    return jobs


class WriteTrials:
    """Each trial writes into parts of a file that were never written before, and syncs the file.

    Args:
        pool: workers whose jobs are ``writers``.
        file: the file, through the page cache.

    Attributes:
        tmpfs: whether the file is in memory.
    """

    def __init__(self, pool: WorkerPool, file: FileChannel) -> None:
        self.tmpfs = linux.is_tmpfs(file.fd)
        self._pool = pool
        self._file = file
        self._slots = count()
        self._middle: dict[tuple[int, int, Pattern], tuple[float, float, float]] = {}

    def write(self, job: int, channels: int, pattern: Pattern) -> tuple[float, float, float]:
        """Make a trial; returns seconds of writing, of the sync, and of computing meanwhile."""
        window = JOB_WINDOW_PAGES[job]
        pages = TRIALS[pattern].windows * window
        start = next(self._slots) * _SLOT
        if not self.tmpfs:  # there it would fill memory twice
            linux.fallocate(self._file.fd, 0, start, pages * TARGET_PAGE_SIZE)
        share = pages // channels // WORD_PAGES
        first = start // TARGET_PAGE_SIZE // WORD_PAGES
        shards = [Shard(pattern, first + each * share, share, 0) for each in range(channels)]
        started = time.perf_counter()
        tally = self._pool.run(job, shards)
        written = time.perf_counter()
        self._file.sync()
        synced = time.perf_counter()
        if TRIALS[pattern].stride and not self.tmpfs:  # fill the gaps: freeing scattered pages at the end takes long
            self._pool.run(job, [replace(shard, block=Pattern.LARGE) for shard in shards])
            self._file.sync()
        return written - started, synced - written, tally.digest_seconds

    def middle(self, job: int, channels: int, pattern: Pattern) -> tuple[float, float, float]:
        """The trial with the median total time out of several; measured at the first call."""
        if known := self._middle.get((job, channels, pattern)):
            return known
        found: list[tuple[float, float, float]] = []
        until = time.perf_counter() + _ENOUGH_SECONDS
        while len(found) < TRIALS[pattern].repeats and (not found or time.perf_counter() < until):
            found.append(self.write(job, channels, pattern))
        found.sort(key=lambda each: each[0] + each[1])
        self._middle[job, channels, pattern] = found[len(found) // 2]
        return found[len(found) // 2]

    def empty_sync(self) -> float:
        """Median seconds of a sync after a single page."""
        found = []
        for _ in range(_SYNCS):
            self._file.write(next(self._slots) * _SLOT, memoryview(bytes(TARGET_PAGE_SIZE)))
            started = time.perf_counter()
            self._file.sync()
            found.append(time.perf_counter() - started)
        return sorted(found)[_SYNCS // 2]

    def overlap(self) -> float:
        """How much of the shorter of direct writes and computing is hidden behind the other, from 0 to 1."""
        alone, _, _ = self.middle(DIRECT, 1, Pattern.LARGE)
        both, _, computing = self.middle(DIRECT, 1, Pattern.COMPUTING)
        return min(max((alone + computing - both) / min(alone, computing), 0.0), 1.0)

    def reserve(self) -> float:
        """Seconds to reserve space for a page, if pages are apart from each other; 0 if the file is in memory."""
        if self.tmpfs:
            return 0.0
        start = 1 << 40  # far from what is written
        started = time.perf_counter()
        for number in range(_RESERVED):
            offset = start + number * _RESERVED_STRIDE * TARGET_PAGE_SIZE
            linux.fallocate(self._file.fd, linux.FALLOC_FL_KEEP_SIZE, offset, TARGET_PAGE_SIZE)
        return (time.perf_counter() - started) / _RESERVED
