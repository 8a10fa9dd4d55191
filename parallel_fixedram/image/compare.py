"""Compare RAM page by page: a file with another file, or with live memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap, runs_of_ones, words_for
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import Pages, PageSource
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.reports.diff import DiffReport, NotCompared
from parallel_fixedram.core.reports.difference import Difference
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.engine.pages.window import Window, WindowReader, windows
from parallel_fixedram.engine.workers.messages import BadPages, Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.engine.workers.progress import run_job
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.image.image import Image


class Side(Protocol):
    """One side of a comparison: the pages of one block."""

    content: PageBitmap
    """Pages that may contain anything but zeros."""

    def open(self) -> None:
        """Prepare this process (Job.open)."""

    def read(self, first: int, count: int, tally: Tally) -> Pages:
        """The pages, shape (count, page_size / 8), zeros outside ``content``; valid until the next call."""


class FileSide:
    """A block in a file."""

    def __init__(self, image: Image, saved: SavedBlock) -> None:
        self._image = image
        self._saved = saved
        self.content = image.bitmap(saved.block.idstr)

    def open(self) -> None:
        """Allocate the read buffer (Side.open)."""
        self._reader = WindowReader(self._image.channel, self._saved.block.page_size)

    def read(self, first: int, count: int, tally: Tally) -> Pages:
        """The pages in the file (Side.read)."""
        return self._reader.read(self._saved, Window(first, self.content.page_bits(first, count)), tally)


class RamSide:
    """A block in live memory."""

    def __init__(self, source: PageSource, pages: int, page_size: int) -> None:
        self._source = source
        self._page_size = page_size
        self.content = PageBitmap(pages, shared_words(words_for(pages)))
        for found in source.data_ranges(PageRange(0, pages)):
            self.content.set_range(found)

    def open(self) -> None:
        """Open the memory (Side.open)."""
        self._source.open()
        self._buffer = np.frombuffer(anonymous_memory(WINDOW_PAGES * self._page_size), np.uint64)
        self._buffer = self._buffer.reshape(WINDOW_PAGES, -1)

    def read(self, first: int, count: int, tally: Tally) -> Pages:
        """The pages in memory; untouched ones stay untouched (Side.read)."""
        bits = self.content.page_bits(first, count)
        if bits.all():
            return self._source.pages(first, count)
        pages = self._buffer[:count]
        pages[bits == 0] = 0
        for start, length in runs_of_ones(bits).tolist():
            pages[start : start + length] = self._source.pages(first + start, length)
        return pages


class CompareJob:
    """Finds the pages of a shard that differ between two sides."""

    def __init__(self, pairs: Sequence[tuple[Side, Side]]) -> None:
        self._pairs = pairs
        self.work = [PageBitmap(a.content.pages, a.content.words | b.content.words) for a, b in pairs]

    def open(self) -> None:
        """Open both sides (Job.open)."""
        for pair in self._pairs:
            for side in pair:
                side.open()

    def run(self, shard: Shard) -> Tally:
        """Compare one shard (Job.run)."""
        tally = Tally()
        a, b = self._pairs[shard.block]
        for window in windows(self.work[shard.block], shard):
            count = len(window.bits)
            left, right = a.read(window.first, count, tally), b.read(window.first, count, tally)
            started = time.perf_counter()
            tally.found_bad(shard.block, window.first, differing_pages(left, right))
            tally.scan_seconds += time.perf_counter() - started
        return tally


def differing_pages(a: Pages, b: Pages) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """1 for every page that differs, shape (pages,)."""
    differ: np.ndarray[tuple[int], np.dtype[np.uint8]] = (np.bitwise_or.reduce(a ^ b, axis=1) != 0).view(np.uint8)
    return differ


def run_check(
    pool: WorkerPool,
    job: int,
    work: Sequence[PageBitmap],
    *,
    phase: str,
    page_size: int,
    observer: Observer,
) -> Tally:
    """Run a job that looks for bad pages over ``work``; findings are sorted, and adjacent ones joined."""
    tally = run_job(pool, job, work, phase=phase, page_size=page_size, observer=observer)
    tally.findings = join_findings(tally.findings)
    return tally


def join_findings(findings: Sequence[BadPages]) -> list[BadPages]:
    """Findings in order of block and page, with adjacent ones joined."""
    joined: list[BadPages] = []
    for each in sorted(findings):
        if joined and joined[-1].block == each.block and joined[-1].first + joined[-1].pages == each.first:
            each = BadPages(each.block, joined[-1].first, joined.pop().pages + each.pages)
        joined.append(each)
    return joined


def diff(a: Image, b: Image, *, channels: int = 1, observer: Observer = SILENT) -> DiffReport:
    """Find the pages that differ between two files.

    Args:
        a: one file.
        b: the other; blocks are matched by name, and compared where their lengths are equal.
        channels: number of workers.
        observer: told about progress.

    Raises:
        FormatError: a file is malformed.
        HostError: a file cannot be read.
    """
    started = time.perf_counter()
    a.check_complete()
    b.check_complete()
    lengths_a, lengths_b = ({s.block.idstr: s.block.used_length for s in image.blocks} for image in (a, b))
    odd = [each for each in lengths_a | lengths_b if lengths_a.get(each) != lengths_b.get(each)]
    common = [saved for saved in a.blocks if saved.block.idstr not in odd]
    tally = Tally()
    if common:
        job = CompareJob([(FileSide(a, saved), FileSide(b, b.block(saved.block.idstr))) for saved in common])
        with WorkerPool([job], channels) as pool:
            size = common[0].block.page_size
            tally = run_check(pool, 0, job.work, phase="diff", page_size=size, observer=observer)
    return DiffReport(
        file_a=a.path,
        file_b=b.path,
        equal=not tally.bad_pages and not odd,
        differing_pages=tally.bad_pages,
        differences=page_differences("differs", common, tally.findings),
        truncated=sum(found.pages for found in tally.findings) < tally.bad_pages,
        only_in_a=tuple(idstr for idstr in odd if idstr in lengths_a),
        only_in_b=tuple(idstr for idstr in odd if idstr in lengths_b),
        not_compared=tuple(
            NotCompared(idstr=idstr, length_a=lengths_a.get(idstr), length_b=lengths_b.get(idstr)) for idstr in odd
        ),
        seconds=time.perf_counter() - started,
    )


def page_differences(what: str, blocks: Sequence[SavedBlock], findings: Sequence[BadPages]) -> tuple[Difference, ...]:
    """Findings as reports show them; a finding's block is an index into ``blocks``."""
    return tuple(
        Difference(
            what=what,
            idstr=blocks[found.block].block.idstr,
            first_page=found.first,
            pages=found.pages,
            offset=blocks[found.block].page_offset(found.first),
        )
        for found in findings
    )
