"""Calibration of what needs no device: looking at RAM, digests, hashes; a few hundredths of a second in all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, Runs
from parallel_fixedram.core.cost import WORK_WINDOW_PAGES
from parallel_fixedram.core.protocols import GuestBlock, Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, RAMBlock
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.memory.mapped_source import MappedSource

_REPEATS = 3
_DENSE_WINDOWS = 8
_SPARSE_WINDOWS = 64
_SPARSE_PAGES = 4
"""Pages that hold something in a window of the sparse kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """What one worker takes, in seconds; the fields are those of ``DeviceModel``."""

    window: float
    scan_byte: float
    digest_page: float
    hash_page: float


def measure_computing(pages: Pages) -> Computing:
    """Measure now.

    Args:
        pages: some that hold something.

    Raises:
        OSError: there is no memory.
    """
    dense_bytes = _DENSE_WINDOWS * WORK_WINDOW_PAGES * TARGET_PAGE_SIZE
    sparse_bytes = _SPARSE_WINDOWS * _SPARSE_PAGES * TARGET_PAGE_SIZE
    dense, sparse = (
        statistics.median(_look(*kind) for _ in range(_REPEATS))
        for kind in ((_DENSE_WINDOWS, WORK_WINDOW_PAGES), (_SPARSE_WINDOWS, _SPARSE_PAGES))
    )
    # two unknowns, two measurements: dense = 8 windows + 8 MiB, sparse = 64 windows + 1 MiB
    ratio = _SPARSE_WINDOWS / _DENSE_WINDOWS
    scan_byte = max((ratio * dense - sparse) / (ratio * dense_bytes - sparse_bytes), 1e-12)
    hashes = Hashes([])
    return Computing(
        window=max((sparse - scan_byte * sparse_bytes) / _SPARSE_WINDOWS, 0.0),
        scan_byte=scan_byte,
        digest_page=_page(pages, lambda bits: page_digests(pages, bits)),
        hash_page=_page(pages, lambda bits: hashes.hashes_of(pages, np.flatnonzero(bits))),
    )


class _Nowhere(FileChannel):
    """Takes every write and does nothing."""

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        """Forget them (Channel.write_runs)."""


def _look(windows: int, pages: int) -> float:
    """Seconds to go through memory that this process sees for the first time, so many pages in each window."""
    block = RAMBlock(idstr="calibration", used_length=windows * WORK_WINDOW_PAGES * TARGET_PAGE_SIZE)
    fd = os.memfd_create(block.idstr, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, block.used_length)
        ledger, step = Ledger([block]), WORK_WINDOW_PAGES // pages
        for page in range(0, block.pages, step):
            os.pwrite(fd, b"\1" * TARGET_PAGE_SIZE, page * TARGET_PAGE_SIZE)
        ledger.data[0].set_pages(np.arange(0, block.pages, step, dtype=np.int64))
        ledger.dirty[0].words |= ledger.data[0].words
        source = MappedSource(fd, length=block.used_length)
        blocks, nowhere = FileLayout.plan("none", [block]).blocks, _Nowhere(-1, "nowhere")
        writer = PageWriter([GuestBlock(block=block, source=source)], blocks, ledger, nowhere, max_gap_pages=0)
        job = RoundJob(ledger, writer, window_pages=WORK_WINDOW_PAGES)
        job.open()
        started = time.perf_counter()
        tally = job.run(Shard(0, 0, block.pages // WORD_PAGES, 0))
        seconds = time.perf_counter() - started - tally.digest_seconds
        source.close()
        return seconds
    finally:
        os.close(fd)


def _page(pages: Pages, work: Callable[[Bits], object]) -> float:
    """Seconds that work on all of these pages takes for each."""
    started = time.perf_counter()
    work(np.ones(len(pages), np.uint8))
    return (time.perf_counter() - started) / len(pages)
