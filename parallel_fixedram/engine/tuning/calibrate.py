"""Calibration: what writes cost in a folder, measured in one to three seconds.

Runs of one page and whole windows are written into an unnamed file there, through the page cache and bypassing it, with
one, two and four channels, each followed by a sync. In between, the cost of computing is measured several times. From
these times follow the costs of a call, a byte and a sync. The result is kept for later commands, by file system.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from parallel_fixedram.core.choice import CANDIDATES
from parallel_fixedram.core.cost import ASSUMED, NO_COST, CallCost, DeviceModel
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.shards import WINDOW_PAGES_DIRECT
from parallel_fixedram.engine.tuning.calibrate_computing import ComputingTrials
from parallel_fixedram.engine.tuning.calibrate_writing import (
    BUFFERED,
    DIRECT,
    TRIALS,
    Pattern,
    WriteTrials,
    writers,
)
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.host import user_cache
from parallel_fixedram.host.files.probe import probe
from parallel_fixedram.host.memory.anonymous import anonymous_memory

logger = logging.getLogger(__name__)

WORTH_MEASURING = 64 << 20
"""A save of fewer bytes is over sooner than the calibration."""
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a result is used."""

_KEPT_AS = "devices.json"
_VERSION = 4
"""To be raised when the measurement changes; results of other versions are not used."""


def device_model(folder: str, size: int, *, fresh: bool = False) -> DeviceModel:
    """What writes into a folder cost.

    Args:
        folder: where the file will be.
        size: bytes that will be written; if they are few, nothing is measured, but a known result is used.
        fresh: whether to measure in any case.

    Returns:
        The model, whose ``source`` says where it comes from; ``ASSUMED`` if nothing was or could be measured.
    """
    try:
        key = _key(folder)
    except OSError:
        return ASSUMED
    if not fresh and (known := _known(key)):
        return known[0]
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


def known_for(folder: str) -> float | None:
    """Age in seconds of the known cost of writes into a folder; None if the next save has to measure it.

    Raises:
        OSError: there is no such folder.
    """
    known = _known(_key(folder))
    return None if known is None else known[1]


def measure(folder: str) -> DeviceModel:
    """Measure now.

    Raises:
        OSError: there is no space.
        FixedRamError: no file can be made there, or writing fails.
    """
    memory = anonymous_memory(WINDOW_PAGES_DIRECT * TARGET_PAGE_SIZE, shared=True)
    pages = np.frombuffer(memory, np.uint64).reshape(-1, TARGET_PAGE_SIZE // 8)
    pages[:] = np.arange(1, len(pages) + 1, dtype=np.uint64)[:, None]
    with probe(folder) as file, file.direct() as direct:
        jobs = writers(pages, file.channel, direct)
        computing = ComputingTrials(pages)
        started = time.perf_counter()
        with WorkerPool(jobs, max(CANDIDATES)) as pool:
            start = time.perf_counter() - started
            return model_from(WriteTrials(pool, file.channel), computing, direct=direct is not None, start=start)


def model_from(trials: WriteTrials, computing: ComputingTrials, *, direct: bool, start: float) -> DeviceModel:
    """What follows from trials, which are made as they are needed.

    Args:
        trials: measure writes and syncs.
        computing: measures what comes between; it is sampled between the trials, which lie apart.
        direct: whether writes can bypass the page cache.
        start: seconds that starting the workers took.

    Raises:
        OSError: there is no space.
        FixedRamError: writing fails.
    """
    jobs = (BUFFERED, DIRECT) if direct else (BUFFERED,)
    sync = trials.empty_sync()
    computing.sample()
    overlap = trials.overlap() if direct else 0.0
    computing.sample()
    windows = [_window(trials, job) for job in jobs]
    computing.sample()
    costs = [_costs(trials, job, windows[job]) for job in jobs]
    written_back, buffered_sync = _synced(trials, BUFFERED)
    flush, direct_sync = _synced(trials, DIRECT) if direct else (NO_COST, 0.0)
    computing.sample()
    reserve = trials.reserve()
    return DeviceModel(
        source="measured",
        direct=costs[DIRECT] if direct else {},
        buffered=costs[BUFFERED],
        stable=costs[BUFFERED][1] + written_back,
        flush=flush,
        sync=sync,
        direct_sync=direct_sync,
        buffered_sync=buffered_sync,
        start=start,
        reserve=reserve,
        overlap=overlap,
        direct_window=windows[DIRECT] if direct else 0.0,
        buffered_window=windows[BUFFERED],
        **asdict(computing.result()),
    )


def _window(trials: WriteTrials, job: int) -> float:
    """Seconds that one channel needs for a window, besides its runs."""
    patterns = (Pattern.SPARSE, Pattern.SMALL)
    sparse, small = (trials.middle(job, 1, each)[0] / TRIALS[each].windows for each in patterns)
    # two unknowns, the cost of a window and of a run, from two measurements: windows with few runs and with many
    few, many = (TRIALS[each].calls(job) for each in patterns)
    run = max(small - sparse, 0.0) / (many - few)
    return max(sparse - few * run, 0.0)


def _costs(trials: WriteTrials, job: int, window: float) -> dict[int, CallCost]:
    """What writes cost, by number of channels.

    Args:
        trials: measure writes.
        job: the way to write.
        window: seconds that a window takes besides its writes.
    """

    def written(channels: int, pattern: Pattern) -> float:
        alone = TRIALS[pattern].windows * window / min(channels, len(os.sched_getaffinity(0)))
        return max(trials.middle(job, channels, pattern)[0] - alone, 0.0)

    patterns = (Pattern.SMALL, Pattern.LARGE)
    return {
        channels: CallCost.fit(*((*TRIALS[each].amount(job), written(channels, each)) for each in patterns))
        for channels in CANDIDATES
    }


def _synced(trials: WriteTrials, job: int) -> tuple[CallCost, float]:
    """What one channel's writes add to the following sync, and the fixed part of a sync in seconds.

    A sync ends a transaction, turns reserved space into written space, and writes back or flushes the device's cache. A
    short and a long write of the same kind tell apart the cost per byte and the fixed part.
    """
    patterns = (Pattern.SMALL, Pattern.LARGE, Pattern.LONG)
    written = [(1, *TRIALS[each].amount(job)) for each in patterns]
    took = [trials.middle(job, 1, each)[1] for each in patterns]
    alone, call, byte = np.linalg.solve(np.array(written, np.float64), took).tolist()
    return CallCost(call=max(call, 0.0), byte=max(byte, 1e-12)), max(alone, 0.0)


def _key(folder: str) -> str:
    """Identifies what a result is valid for: this file system, under this kernel."""
    return f"{os.stat(folder).st_dev:x}-{os.statvfs(folder).f_fsid:x}-{os.uname().release}"


def _known(key: str) -> tuple[DeviceModel, float] | None:
    kept: Any = user_cache.read(_KEPT_AS).get(key)
    try:
        if kept["version"] != _VERSION or not 0 <= (age := time.time() - float(kept["measured"])) < KEPT_SECONDS:
            return None
        return DeviceModel.from_json(kept["model"], "cached"), age
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
