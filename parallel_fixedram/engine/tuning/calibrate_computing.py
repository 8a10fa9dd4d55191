"""Calibration of what needs no device: reading RAM, digests, hashes; it takes a few hundredths of a second in all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, Runs
from parallel_fixedram.core.protocols import GuestBlock, Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, RAMBlock
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.memory.mapped_source import MappedSource

_DENSE_WINDOWS = 8
_SPARSE_WINDOWS = 64
_SPARSE_PAGES = 4
"""Pages with data in a sparse window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """Seconds that one worker needs; the fields are those of ``DeviceModel``."""

    window: float
    scan_byte: float
    digest_page: float
    hash_page: float


class ComputingTrials:
    """Takes several samples, a few hundredths of a second each.

    If others share its core, a processor's speed changes by a factor of two within tenths of a second, and a save meets
    fast and slow phases alike. So the result is the mean of samples that lie apart.

    Args:
        pages: some pages with data.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._hashes = Hashes([])
        self._found: list[tuple[float, ...]] = []
        self.sample()  # to warm up: everything takes longer the first time
        self._found.clear()

    def sample(self) -> None:
        """Measure once.

        Raises:
            OSError: there is no memory.
        """
        pages = self._pages
        self._found.append(
            (
                _look(_DENSE_WINDOWS, WINDOW_PAGES),
                _look(_SPARSE_WINDOWS, _SPARSE_PAGES),
                _page(pages, lambda bits: page_digests(pages, bits)),
                _page(pages, lambda bits: self._hashes.hashes_of(pages, np.flatnonzero(bits))),
            )
        )

    def result(self) -> Computing:
        """The result; there must be a sample."""
        dense, sparse, digest_page, hash_page = (statistics.mean(each) for each in zip(*self._found, strict=True))
        dense_pages, sparse_pages = _DENSE_WINDOWS * WINDOW_PAGES, _SPARSE_WINDOWS * _SPARSE_PAGES
        # two unknowns, two measurements: dense = 8 windows and 2048 pages, sparse = 64 windows and 256 pages
        ratio = _SPARSE_WINDOWS / _DENSE_WINDOWS
        page = max((ratio * dense - sparse) / (ratio * dense_pages - sparse_pages), 0.0)
        return Computing(
            window=max((sparse - page * sparse_pages) / _SPARSE_WINDOWS, 0.0),
            scan_byte=max((page - digest_page) / TARGET_PAGE_SIZE, 1e-12),  # a digest is part of it
            digest_page=digest_page,
            hash_page=hash_page,
        )


class _Nowhere(FileChannel):
    """Accepts every write and does nothing."""

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        """Forget them (Channel.write_runs)."""


def _look(windows: int, pages: int) -> float:
    """Seconds to test and hash memory that is new to this process, with ``pages`` pages of data in each window."""
    block = RAMBlock(idstr="calibration", used_length=windows * WINDOW_PAGES * TARGET_PAGE_SIZE)
    fd = os.memfd_create(block.idstr, os.MFD_CLOEXEC)
    with linux.closing(fd):
        os.ftruncate(fd, block.used_length)
        ledger, step = Ledger([block]), WINDOW_PAGES // pages
        for page in range(0, block.pages, step):
            os.pwrite(fd, b"\1" * TARGET_PAGE_SIZE, page * TARGET_PAGE_SIZE)
        ledger.data[0].set_pages(np.arange(0, block.pages, step, dtype=np.int64))
        ledger.dirty[0].words |= ledger.data[0].words
        source = MappedSource(fd, length=block.used_length)
        blocks, nowhere = FileLayout.plan("none", [block]).blocks, _Nowhere(-1, "nowhere")
        writer = PageWriter([GuestBlock(block=block, source=source)], blocks, ledger, nowhere, max_gap_pages=0)
        job = RoundJob(ledger, writer, window_pages=WINDOW_PAGES)
        job.open()
        started = time.perf_counter()
        job.run(Shard(0, 0, block.pages // WORD_PAGES, 0))
        seconds = time.perf_counter() - started
        source.close()
        return seconds


def _page(pages: Pages, work: Callable[[Bits], object]) -> float:
    """Seconds per page that ``work`` takes on these pages."""
    started = time.perf_counter()
    work(np.ones(len(pages), np.uint8))
    return (time.perf_counter() - started) / len(pages)
