"""Calibration: what writes cost in a folder, measured in one to three seconds.

Workers of the same kind as a save's write runs of one page, and then whole windows, into an unnamed file there: past
the page cache and into it, with one, two and four channels. After each the file is synced, and that is timed by itself:
a device with a volatile cache does most of its work only then. The result is kept for the next command, by file system.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from typing import Any

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES
from parallel_fixedram.core.choice import CANDIDATES, WINDOW_PAGES_BUFFERED, WINDOW_PAGES_DIRECT
from parallel_fixedram.core.cost import ASSUMED, NO_COST, CallCost, DeviceModel
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.window import nonzero_pages
from parallel_fixedram.engine.tuning.calibrate_computing import measure_computing
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.host import linux, user_cache
from parallel_fixedram.host.files.channel import FileChannel, anonymous_memory
from parallel_fixedram.host.files.direct_channel import DirectChannel

logger = logging.getLogger(__name__)

WORTH_MEASURING = 64 << 20
"""A save of fewer bytes takes no longer than the calibration would."""
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a result is used again."""

_KEPT_AS = "devices.json"
_VERSION = 3
"""Of what is measured and how; what another one has kept is not used."""
_WINDOWS = 8
"""Windows written at a time: 16 MiB by large calls."""
_STRIDE = 8
"""One page of so many is written by small calls."""
_SMALL_WINDOWS = 4
"""Windows written at a time by small calls: 256, as many as are enough to tell."""
_SPARSE_STRIDE = 64
_SPARSE_WINDOWS = 16
"""Windows in which few pages are written, one of so many: what a window takes besides its calls."""
_REPEATS = 3
_SMALL_REPEATS = 2
_ENOUGH_SECONDS = 0.15
"""Nothing is measured again after so long."""
_RESERVED = 128
_SLOT = _SPARSE_WINDOWS * WINDOW_PAGES_DIRECT * TARGET_PAGE_SIZE
_SMALL, _LARGE, _COMPUTING, _SPARSE = range(4)
"""What is written: runs of one page, whole windows, whole windows that are looked at meanwhile, few such runs."""
_STRIDES = {_SMALL: _STRIDE, _SPARSE: _SPARSE_STRIDE}
_WRITTEN_WINDOWS = {_SMALL: _SMALL_WINDOWS, _LARGE: _WINDOWS, _COMPUTING: _WINDOWS, _SPARSE: _SPARSE_WINDOWS}
_DIRECT = 1
"""Place of the job that writes past the page cache."""
_WINDOW_PAGES = (WINDOW_PAGES_BUFFERED, WINDOW_PAGES_DIRECT)


@dataclass(frozen=True, slots=True)
class _Writer:
    """A Job that writes windows: the pattern is the shard's block, the windows are its words."""

    channel: Channel
    pages: Pages
    window_pages: int

    def open(self) -> None:
        """Touch what is written (Job.open)."""
        self.pages.sum()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run)."""
        stride = _STRIDES.get(shard.block, self.window_pages)
        firsts = np.arange(0, self.window_pages, stride, dtype=np.int64)
        runs = np.stack((firsts, np.full(len(firsts), 1 if shard.block in _STRIDES else stride)), axis=1)
        tally, clock = Tally(), time.perf_counter
        first, end = shard.first_word * WORD_PAGES, (shard.first_word + shard.words) * WORD_PAGES
        readable = np.ones(self.window_pages, np.uint8)
        for page in range(first, end, self.window_pages):
            self.channel.write_runs(page * TARGET_PAGE_SIZE, self.pages[: self.window_pages], runs, readable)
            if shard.block == _COMPUTING:
                started = clock()
                page_digests(self.pages[: self.window_pages], nonzero_pages(self.pages[: self.window_pages]))
                tally.digest_seconds += clock() - started
        self.channel.settle()
        return tally


def device_model(folder: str, size: int, *, fresh: bool = False) -> DeviceModel:
    """What writes into a folder cost.

    Args:
        folder: where the file will be.
        size: bytes that will be written: for very few it is not measured, but what is known is used.
        fresh: measure in any case.

    Returns:
        The model; its ``source`` says where it comes from. Where it cannot be measured, ``ASSUMED``.
    """
    try:
        key = _key(folder)
    except OSError:
        return ASSUMED
    if not fresh and (known := _known(key)):
        return known
    if not fresh and size < WORTH_MEASURING:
        return ASSUMED
    try:
        model = measure(folder)
    except (OSError, FixedRamError) as error:
        logger.debug("cannot calibrate in %r: %s", folder, error)
        return ASSUMED
    kept = user_cache.read(_KEPT_AS)
    user_cache.write(_KEPT_AS, {**kept, key: {"version": _VERSION, "measured": time.time(), "model": model.to_json()}})
    return model


def measure(folder: str) -> DeviceModel:
    """Measure now.

    Raises:
        OSError: no unnamed file can be made there, or there is no space.
        FixedRamError: writing fails.
    """
    memory = anonymous_memory(WINDOW_PAGES_DIRECT * TARGET_PAGE_SIZE, shared=True)
    pages = np.frombuffer(memory, np.uint64).reshape(-1, TARGET_PAGE_SIZE // 8)
    pages[:] = np.arange(1, len(pages) + 1, dtype=np.uint64)[:, None]
    with _unnamed_file(folder) as (buffered, direct):
        jobs = [_Writer(buffered, pages, WINDOW_PAGES_BUFFERED)]
        if direct is not None:
            jobs.append(_Writer(direct, pages, WINDOW_PAGES_DIRECT))
        started = time.perf_counter()
        with WorkerPool(jobs, max(CANDIDATES)) as pool:
            start = time.perf_counter() - started
            trials = _Trials(pool, buffered)
            sync = trials.empty_sync()
            overlap = trials.overlap() if direct is not None else 0.0
            windows = [_window(trials, job) for job in range(len(jobs))]
            costs = _costs(trials, range(len(jobs)), sync, windows)
            reserve = 0.0 if trials.tmpfs else _reserve(buffered)
    computing = measure_computing(pages)
    into_cache, written_back = costs[0][1]
    return DeviceModel(
        source="measured",
        direct={channels: write for channels, (write, _) in costs[1].items()} if direct is not None else {},
        buffered={channels: write for channels, (write, _) in costs[0].items()},
        stable=into_cache + written_back,
        flush=costs[1][1][1] if direct is not None else NO_COST,
        sync=sync,
        start=start,
        reserve=reserve,
        overlap=overlap,
        window=computing.window,
        direct_window=windows[1] if direct is not None else 0.0,
        buffered_window=windows[0],
        scan_byte=computing.scan_byte,
        digest_page=computing.digest_page,
        hash_page=computing.hash_page,
    )


class _Trials:
    """Writes into parts of a file that were never written, and syncs it after each.

    Args:
        pool: workers whose jobs are _Writers, buffered and direct.
        file: what they write, through the page cache.
    """

    def __init__(self, pool: WorkerPool, file: FileChannel) -> None:
        self.tmpfs = linux.is_tmpfs(file.fd)
        self._pool = pool
        self._file = file
        self._slots = count()

    def write(self, job: int, channels: int, pattern: int) -> tuple[float, float, float]:
        """Seconds to write and to sync, and seconds of computing meanwhile."""
        window = _WINDOW_PAGES[job]
        pages = _WRITTEN_WINDOWS[pattern] * window
        start = next(self._slots) * _SLOT
        if not self.tmpfs:  # nothing is reserved there: it would be to fill memory twice
            linux.fallocate(self._file.fd, 0, start, pages * TARGET_PAGE_SIZE)
        share = pages // channels // WORD_PAGES
        first = start // TARGET_PAGE_SIZE // WORD_PAGES
        shards = [Shard(pattern, first + each * share, share, 0) for each in range(channels)]
        started = time.perf_counter()
        tally = self._pool.run(job, shards)
        written = time.perf_counter()
        self._file.sync()
        synced = time.perf_counter()
        if pattern in _STRIDES:  # what lies in one piece is freed at once, and what is scattered piece by piece
            self._pool.run(job, [replace(shard, block=_LARGE) for shard in shards])
            self._file.sync()
        return written - started, synced - written, tally.digest_seconds

    def middle(self, job: int, channels: int, pattern: int) -> tuple[float, float, float]:
        """The middle one of some, by all of its time."""
        found: list[tuple[float, float, float]] = []
        until = time.perf_counter() + _ENOUGH_SECONDS
        while len(found) < (_SMALL_REPEATS if pattern in _STRIDES else _REPEATS) and (
            not found or time.perf_counter() < until
        ):
            found.append(self.write(job, channels, pattern))
        found.sort(key=lambda each: each[0] + each[1])
        return found[len(found) // 2]

    def empty_sync(self) -> float:
        """Seconds of a sync after a single page, the middle one of some."""
        found = []
        for _ in range(_REPEATS):
            self._file.write(next(self._slots) * _SLOT, memoryview(bytes(TARGET_PAGE_SIZE)))
            started = time.perf_counter()
            self._file.sync()
            found.append(time.perf_counter() - started)
        return sorted(found)[_REPEATS // 2]

    def overlap(self) -> float:
        """How much of the shorter of direct writes and computing is hidden, from 0 to 1."""
        alone, _, _ = self.middle(_DIRECT, 1, _LARGE)
        both, _, computing = self.middle(_DIRECT, 1, _COMPUTING)
        return min(max((alone + computing - both) / min(alone, computing), 0.0), 1.0)


def _window(trials: _Trials, job: int) -> float:
    """Seconds that a window takes one channel, besides its runs."""
    pages = _WINDOW_PAGES[job]
    sparse, small = (trials.middle(job, 1, each)[0] / _WRITTEN_WINDOWS[each] for each in (_SPARSE, _SMALL))
    # two unknowns, two measurements: a window and its runs, few and many
    few, many = pages // _SPARSE_STRIDE, pages // _STRIDE
    run = max(small - sparse, 0.0) / (many - few)
    return max(sparse - few * run, 0.0)


def _costs(
    trials: _Trials, jobs: Sequence[int], empty_sync: float, windows: Sequence[float]
) -> list[dict[int, tuple[CallCost, CallCost]]]:
    """By job and number of channels: what writes cost, and what they add to the sync that follows.

    Args:
        trials: tell how long it takes.
        jobs: the ways to write.
        empty_sync: seconds of a sync in any case.
        windows: seconds of a window in any case, by job.
    """
    found = {case: trials.middle(*case) for case in product(jobs, CANDIDATES, (_SMALL, _LARGE))}

    def written(job: int, channels: int, pattern: int) -> float:
        alone = _WRITTEN_WINDOWS[pattern] * windows[job] / min(channels, len(os.sched_getaffinity(0)))
        return max(found[job, channels, pattern][0] - alone, 0.0)

    def synced(job: int, channels: int, pattern: int) -> float:
        return max(found[job, channels, pattern][1] - empty_sync, 0.0)

    return [
        {
            channels: (
                _fit(job, *(written(job, channels, each) for each in (_SMALL, _LARGE))),
                _fit(job, *(synced(job, channels, each) for each in (_SMALL, _LARGE))),
            )
            for channels in CANDIDATES
        }
        for job in jobs
    ]


def _fit(job: int, small: float, large: float) -> CallCost:
    """The cost of which the seconds of both patterns tell."""
    window = _WINDOW_PAGES[job]
    calls, size = _SMALL_WINDOWS * (window // _STRIDE), _WINDOWS * window * TARGET_PAGE_SIZE
    return CallCost.fit((calls, calls * TARGET_PAGE_SIZE, small), (_WINDOWS, size, large))


def _reserve(file: FileChannel) -> float:
    """Seconds to reserve space for one of many pages that lie apart."""
    start = 1 << 40  # far from what is written
    started = time.perf_counter()
    for number in range(_RESERVED):
        linux.fallocate(
            file.fd, linux.FALLOC_FL_KEEP_SIZE, start + number * _STRIDE * TARGET_PAGE_SIZE, TARGET_PAGE_SIZE
        )
    return (time.perf_counter() - started) / _RESERVED


@contextlib.contextmanager
def _unnamed_file(folder: str) -> Iterator[tuple[FileChannel, DirectChannel | None]]:
    """A file without a name, which is gone whatever happens; and the same past the page cache, if that is possible."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            direct = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            yield FileChannel(fd, folder), None
            return
        try:
            yield FileChannel(fd, folder), DirectChannel(direct, folder)
        finally:
            os.close(direct)
    finally:
        os.close(fd)


def _key(folder: str) -> str:
    """What a result holds for: this file system, under this kernel."""
    return f"{os.stat(folder).st_dev:x}-{os.statvfs(folder).f_fsid:x}-{os.uname().release}"


def _known(key: str) -> DeviceModel | None:
    kept: Any = user_cache.read(_KEPT_AS).get(key)
    try:
        if kept["version"] != _VERSION or not 0 <= time.time() - float(kept["measured"]) < KEPT_SECONDS:
            return None
        return DeviceModel.from_json(kept["model"], "cached")
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
