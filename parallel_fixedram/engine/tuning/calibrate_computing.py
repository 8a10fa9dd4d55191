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

_LARGE_WINDOWS = 8
_SMALL_WINDOWS = 64
_SMALL_PAGES = 4
"""Of a small window; large ones have WINDOW_PAGES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """Seconds that one worker needs; the fields are those of ``DeviceModel``."""

    window: float
    scan_byte: float
    digest_page: float
    hash_page: float


class _Nowhere(FileChannel):
    """Accepts every write and does nothing."""

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        """Forget them (Channel.write_runs)."""


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
                self.look(_LARGE_WINDOWS, WINDOW_PAGES),
                self.look(_SMALL_WINDOWS, _SMALL_PAGES),
                self.page(lambda bits: page_digests(pages, bits)),
                self.page(lambda bits: self._hashes.hashes_of(pages, np.flatnonzero(bits))),
            )
        )

    def result(self) -> Computing:
        """The result; there must be a sample."""
        large, small, digest_page, hash_page = (statistics.mean(each) for each in zip(*self._found, strict=True))
        large_pages, small_pages = _LARGE_WINDOWS * WINDOW_PAGES, _SMALL_WINDOWS * _SMALL_PAGES
        # two unknowns, two measurements: large = 8 windows and 2048 pages, small = 64 windows and 256 pages
        ratio = _SMALL_WINDOWS / _LARGE_WINDOWS
        page = max((ratio * large - small) / (ratio * large_pages - small_pages), 0.0)
        return Computing(
            window=max((small - page * small_pages) / _SMALL_WINDOWS, 0.0),
            scan_byte=max((page - digest_page) / TARGET_PAGE_SIZE, 1e-12),  # a digest is part of it
            digest_page=digest_page,
            hash_page=hash_page,
        )

    def look(self, windows: int, pages: int) -> float:
        """Seconds to test and hash memory that is new to this process, in windows of ``pages`` pages."""
        block = RAMBlock(idstr="calibration", used_length=windows * pages * TARGET_PAGE_SIZE)
        fd = os.memfd_create(block.idstr, os.MFD_CLOEXEC)
        with linux.closing(fd):
            os.ftruncate(fd, block.used_length)
            os.pwrite(fd, b"\1" * block.used_length, 0)
            ledger = Ledger([block])
            for bitmap in (ledger.data[0], ledger.dirty[0]):
                bitmap.set_all()
            source = MappedSource(fd, length=block.used_length)
            blocks, nowhere = FileLayout.plan("none", [block]).blocks, _Nowhere(-1, "nowhere")
            writer = PageWriter([GuestBlock(block=block, source=source)], blocks, ledger, nowhere, max_gap_pages=0)
            job = RoundJob(ledger, writer, window_pages=pages)
            job.open()
            started = time.perf_counter()
            job.run(Shard(0, 0, block.pages // WORD_PAGES, 0))
            seconds = time.perf_counter() - started
            source.close()
            return seconds

    def page(self, work: Callable[[Bits], object]) -> float:
        """Seconds per page that ``work`` takes on the pages."""
        started = time.perf_counter()
        work(np.ones(len(self._pages), np.uint8))
        return (time.perf_counter() - started) / len(self._pages)
