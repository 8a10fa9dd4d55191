"""Calibration: what writes cost in a folder, measured in about a tenth of a second.

Workers of the same kind as a save's write runs of one page, and then whole windows, into an unnamed file there: past
the page cache and into it, with one, two and four channels. The result is kept for the next command, by file system.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits
from parallel_fixedram.core.choice import CANDIDATES, WINDOW_PAGES_BUFFERED, WINDOW_PAGES_DIRECT
from parallel_fixedram.core.cost import ASSUMED, CallCost, DeviceModel
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.plan import Shard
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.engine.digest import page_digests
from parallel_fixedram.engine.messages import Tally
from parallel_fixedram.engine.pool import WorkerPool
from parallel_fixedram.engine.precopy import KnownPages
from parallel_fixedram.engine.window import nonzero_pages
from parallel_fixedram.host import linux, user_cache
from parallel_fixedram.host.channel import FileChannel, anonymous_memory
from parallel_fixedram.host.direct_channel import DirectChannel
from parallel_fixedram.host.page_source import MappedSource

logger = logging.getLogger(__name__)

WORTH_MEASURING = 64 << 20
"""A save of fewer bytes takes no longer than the calibration would."""
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a result is used again."""

_KEPT_AS = "devices.json"
_WINDOWS = 8
"""Windows written at a time: 16 MiB by large calls."""
_STRIDE = 8
"""One page of so many is written by small calls."""
_REPEATS = 2
_RESERVED = 256
_SLOT = 2 * _WINDOWS * WINDOW_PAGES_DIRECT * TARGET_PAGE_SIZE
_PATTERNS = _SMALL, _LARGE = (0, 1)


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
        firsts = np.arange(0, self.window_pages, _STRIDE, dtype=np.int64)
        small = np.stack((firsts, np.ones(len(firsts), np.int64)), axis=1)
        runs = small if shard.block == _SMALL else np.array([(0, self.window_pages)], np.int64)
        first, end = shard.first_word * WORD_PAGES, (shard.first_word + shard.words) * WORD_PAGES
        readable = np.ones(self.window_pages, np.uint8)
        for page in range(first, end, self.window_pages):
            self.channel.write_runs(page * TARGET_PAGE_SIZE, self.pages[: self.window_pages], runs, readable)
        self.channel.settle()
        return Tally()


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
    user_cache.write(_KEPT_AS, {**kept, key: {"measured": time.time(), "model": model.to_json()}})
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
        slots = iter(range(1 << 16))
        jobs = [_Writer(buffered, pages, WINDOW_PAGES_BUFFERED)]
        if direct is not None:
            jobs.append(_Writer(direct, pages, WINDOW_PAGES_DIRECT))
        with WorkerPool(jobs, max(CANDIDATES)) as pool:
            reserve = _reserve(buffered)
            stable = _cost(pool, 0, 1, buffered, slots, sync=True)  # first, while there is nothing else to sync
            costs = [
                {channels: _cost(pool, job, channels, buffered, slots) for channels in CANDIDATES}
                for job in range(len(jobs))
            ]
    known = KnownPages([])
    return DeviceModel(
        source="measured",
        direct=costs[1] if direct is not None else {},
        buffered=costs[0],
        stable=stable,
        reserve=reserve,
        scan_byte=_scan_byte(),
        digest_page=_page(pages, lambda bits: page_digests(pages, bits)),
        hash_page=_page(pages, lambda bits: known.hashes_of(pages, np.flatnonzero(bits))),
    )


def _cost(
    pool: WorkerPool, job: int, channels: int, file: FileChannel, slots: Iterator[int], *, sync: bool = False
) -> CallCost:
    """The better of two measurements of small and of large writes, each into space that was never written."""
    window = WINDOW_PAGES_DIRECT if job else WINDOW_PAGES_BUFFERED
    best = {pattern: float("inf") for pattern in _PATTERNS}
    for _ in range(1 if sync else _REPEATS):
        start = next(slots) * _SLOT
        linux.fallocate(file.fd, 0, start, 2 * _WINDOWS * window * TARGET_PAGE_SIZE)
        words = window // WORD_PAGES
        for pattern in _PATTERNS:
            first = start // TARGET_PAGE_SIZE // WORD_PAGES + pattern * _WINDOWS * words
            share = _WINDOWS // channels * words
            shards = [Shard(pattern, first + number * share, share, 0) for number in range(channels)]
            started = time.perf_counter()
            pool.run(job, shards)
            if sync:
                file.sync()
            best[pattern] = min(best[pattern], time.perf_counter() - started)
    small_calls, large_bytes = _WINDOWS * (window // _STRIDE), _WINDOWS * window * TARGET_PAGE_SIZE
    return CallCost.fit(
        (small_calls, small_calls * TARGET_PAGE_SIZE, best[_SMALL]), (_WINDOWS, large_bytes, best[_LARGE])
    )


def _reserve(file: FileChannel) -> float:
    """Seconds to reserve space for one of many pages that lie apart."""
    start = 1 << 40  # far from what is written
    started = time.perf_counter()
    for number in range(_RESERVED):
        linux.fallocate(
            file.fd, linux.FALLOC_FL_KEEP_SIZE, start + number * _STRIDE * TARGET_PAGE_SIZE, TARGET_PAGE_SIZE
        )
    return (time.perf_counter() - started) / _RESERVED


def _scan_byte() -> float:
    """Seconds to look at a byte of memory that this process sees for the first time."""
    fd = os.memfd_create("scan", os.MFD_CLOEXEC)
    try:
        size = 4 << 20
        for offset in range(0, size, 1 << 20):
            os.pwrite(fd, bytes(1 << 20), offset)
        source = MappedSource(fd, length=size)
        source.open()
        started = time.perf_counter()
        for first in range(0, size // TARGET_PAGE_SIZE, WINDOW_PAGES_BUFFERED):
            nonzero_pages(source.pages(first, WINDOW_PAGES_BUFFERED))
        seconds = time.perf_counter() - started
        source.close()
        return seconds / size
    finally:
        os.close(fd)


def _page(pages: Pages, work: Callable[[Bits], object]) -> float:
    """Seconds that work on all of these pages takes for each."""
    started = time.perf_counter()
    work(np.ones(len(pages), np.uint8))
    return (time.perf_counter() - started) / len(pages)


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
        if not 0 <= time.time() - float(kept["measured"]) < KEPT_SECONDS:
            return None
        return DeviceModel.from_json(kept["model"], "cached")
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
