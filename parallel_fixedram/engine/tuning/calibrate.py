"""Calibration: what writes cost in a folder, measured in one to three seconds.

Workers of the same kind as a save's write runs of one page, and then whole windows, into an unnamed file there: past
the page cache and into it, with one, two and four channels. After each the file is synced, and that is timed by itself:
a device with a volatile cache does most of its work only then. What computing takes is measured in between, several
times. The result is kept for the next command, by file system.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
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
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.window import covered, nonzero_pages
from parallel_fixedram.engine.tuning.calibrate_computing import ComputingTrials
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
_VERSION = 4
"""Of what is measured and how; what another one has kept is not used."""
_WINDOWS = 8
"""Windows written at a time: 16 MiB by large calls."""
_LONG_WINDOWS = 32
"""The same for longer: what a sync has to do anyway is in both, and the difference is what bytes cost."""
_STRIDE = 8
"""One page of so many is written by small calls."""
_SMALL_WINDOWS = 4
"""Windows written at a time by small calls: 256, as many as are enough to tell."""
_SPARSE_STRIDE = 64
_SPARSE_WINDOWS = 16
"""Windows in which few pages are written, one of so many: what a window takes besides its calls."""
_SYNCS = 3
_ENOUGH_SECONDS = 0.15
"""Nothing is measured again after so long."""
_RESERVED = 128
_SMALL, _LARGE, _COMPUTING, _SPARSE, _LONG = range(5)
"""What is written: runs of one page, whole windows, those looked at meanwhile, few runs of one page, many windows."""
_STRIDES = {_SMALL: _STRIDE, _SPARSE: _SPARSE_STRIDE}
_WRITTEN_WINDOWS = {
    _SMALL: _SMALL_WINDOWS,
    _LARGE: _WINDOWS,
    _COMPUTING: _WINDOWS,
    _SPARSE: _SPARSE_WINDOWS,
    _LONG: _LONG_WINDOWS,
}
_REPEATS = {_SMALL: 2, _LARGE: 3, _COMPUTING: 3, _SPARSE: 2, _LONG: 1}
"""How often something is written; all of it takes about half a GiB."""
_SLOT = max(_WRITTEN_WINDOWS.values()) * WINDOW_PAGES_DIRECT * TARGET_PAGE_SIZE
_BUFFERED, _DIRECT = 0, 1
"""Places of the jobs that write into the page cache and past it."""
_WINDOW_PAGES = (WINDOW_PAGES_BUFFERED, WINDOW_PAGES_DIRECT)


@dataclass(frozen=True, slots=True)
class _Writer:
    """A Job that writes windows as a save does: the pattern is the shard's block, the windows are its words."""

    channel: Channel
    pages: Pages
    window_pages: int
    staging: Staging | None = None
    """Where pages are copied and written from, instead of ``channel`` and from where they are."""

    def open(self) -> None:
        """Touch what is written (Job.open)."""
        self.pages.sum()
        if self.staging:
            self.staging.open()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run)."""
        stride = _STRIDES.get(shard.block, self.window_pages)
        firsts = np.arange(0, self.window_pages, stride, dtype=np.int64)
        runs = np.stack((firsts, np.full(len(firsts), 1 if shard.block in _STRIDES else stride)), axis=1)
        tally, clock = Tally(), time.perf_counter
        first, end = shard.first_word * WORD_PAGES, (shard.first_word + shard.words) * WORD_PAGES
        readable = np.ones(self.window_pages, np.uint8)
        for page in range(first, end, self.window_pages):
            channel, pages = self.channel, self.pages[: self.window_pages]
            if self.staging:
                channel, spans = self.staging.next_channel(), covered(runs, self.window_pages)
                pages = self.staging.copy(pages, spans & readable, spans & (readable == 0))
            channel.write_runs(page * TARGET_PAGE_SIZE, pages, runs, readable)
            if shard.block == _COMPUTING:
                started = clock()
                page_digests(pages, nonzero_pages(pages))
                tally.digest_seconds += clock() - started
        (self.staging or self.channel).settle()
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
            staging = Staging(direct.another, TARGET_PAGE_SIZE, window_pages=WINDOW_PAGES_DIRECT)
            jobs.append(_Writer(direct, pages, WINDOW_PAGES_DIRECT, staging))
        computing = ComputingTrials(pages)
        started = time.perf_counter()
        with WorkerPool(jobs, max(CANDIDATES)) as pool:
            start = time.perf_counter() - started
            trials = _Trials(pool, buffered)
            sync = trials.empty_sync()
            computing.sample()
            overlap = trials.overlap() if direct is not None else 0.0
            computing.sample()
            windows = [_window(trials, job) for job in range(len(jobs))]
            computing.sample()
            costs = [_costs(trials, job, windows[job]) for job in range(len(jobs))]
            written_back, buffered_sync = _synced(trials, _BUFFERED)
            flush, direct_sync = _synced(trials, _DIRECT) if direct is not None else (NO_COST, 0.0)
            computing.sample()
            reserve = 0.0 if trials.tmpfs else _reserve(buffered)
    alone = computing.result()
    return DeviceModel(
        source="measured",
        direct=costs[_DIRECT] if direct is not None else {},
        buffered=costs[_BUFFERED],
        stable=costs[_BUFFERED][1] + written_back,
        flush=flush,
        sync=sync,
        direct_sync=direct_sync,
        buffered_sync=buffered_sync,
        start=start,
        reserve=reserve,
        overlap=overlap,
        window=alone.window,
        direct_window=windows[_DIRECT] if direct is not None else 0.0,
        buffered_window=windows[_BUFFERED],
        scan_byte=alone.scan_byte,
        digest_page=alone.digest_page,
        hash_page=alone.hash_page,
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
        self._middle: dict[tuple[int, int, int], tuple[float, float, float]] = {}

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
        if pattern in _STRIDES and not self.tmpfs:  # what is scattered is freed piece by piece, what is whole at once
            self._pool.run(job, [replace(shard, block=_LARGE) for shard in shards])
            self._file.sync()
        return written - started, synced - written, tally.digest_seconds

    def middle(self, job: int, channels: int, pattern: int) -> tuple[float, float, float]:
        """The middle one of some, by all of its time; measured when it is first asked for."""
        if known := self._middle.get((job, channels, pattern)):
            return known
        found: list[tuple[float, float, float]] = []
        until = time.perf_counter() + _ENOUGH_SECONDS
        while len(found) < _REPEATS[pattern] and (not found or time.perf_counter() < until):
            found.append(self.write(job, channels, pattern))
        found.sort(key=lambda each: each[0] + each[1])
        self._middle[job, channels, pattern] = found[len(found) // 2]
        return found[len(found) // 2]

    def empty_sync(self) -> float:
        """Seconds of a sync after a single page, the middle one of some."""
        found = []
        for _ in range(_SYNCS):
            self._file.write(next(self._slots) * _SLOT, memoryview(bytes(TARGET_PAGE_SIZE)))
            started = time.perf_counter()
            self._file.sync()
            found.append(time.perf_counter() - started)
        return sorted(found)[_SYNCS // 2]

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


def _costs(trials: _Trials, job: int, window: float) -> dict[int, CallCost]:
    """By number of channels: what writes cost.

    Args:
        trials: tell how long it takes.
        job: the way to write.
        window: seconds of a window in any case.
    """

    def written(channels: int, pattern: int) -> float:
        alone = _WRITTEN_WINDOWS[pattern] * window / min(channels, len(os.sched_getaffinity(0)))
        return max(trials.middle(job, channels, pattern)[0] - alone, 0.0)

    return {channels: _fit(job, *(written(channels, each) for each in (_SMALL, _LARGE))) for channels in CANDIDATES}


def _synced(trials: _Trials, job: int) -> tuple[CallCost, float]:
    """What one channel's writes add to the sync that follows, and seconds of it in any case.

    It ends a transaction, turns reserved space into written space, writes back or empties the device's cache. Two
    lengths of the same kind tell the part that follows the bytes from the one that does not.
    """
    patterns = (_SMALL, _LARGE, _LONG)
    written = [(1, *_calls(job, each)) for each in patterns]
    took = [trials.middle(job, 1, each)[1] for each in patterns]
    alone, call, byte = np.linalg.solve(np.array(written, np.float64), took).tolist()
    return CallCost(call=max(call, 0.0), byte=max(byte, 1e-12)), max(alone, 0.0)


def _calls(job: int, pattern: int) -> tuple[int, int]:
    """Writes of a trial, and their bytes."""
    windows, window_pages = _WRITTEN_WINDOWS[pattern], _WINDOW_PAGES[job]
    if stride := _STRIDES.get(pattern):
        calls = windows * (window_pages // stride)
        return calls, calls * TARGET_PAGE_SIZE
    return windows, windows * window_pages * TARGET_PAGE_SIZE


def _fit(job: int, small: float, large: float) -> CallCost:
    """The cost of which the seconds of both patterns tell."""
    return CallCost.fit((*_calls(job, _SMALL), small), (*_calls(job, _LARGE), large))


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
