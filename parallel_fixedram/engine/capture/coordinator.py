"""Coordinator: has workers write rounds of pages, and keeps account of what they did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.save import RoundReport
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.early_writeback import EarlyWriteback
from parallel_fixedram.engine.workers.messages import ShardDone, Tally
from parallel_fixedram.engine.workers.pool import Worker, WorkerPool
from parallel_fixedram.engine.workers.progress import run_job, shard_span, traced
from parallel_fixedram.engine.workers.worker import Job

FIRST_PASS = "first pass"
"""The phase in which all pages of a running guest are written once."""


class Coordinator:
    """Through which a capture has workers write, and which records what was done.

    Args:
        task: what to save, and how.
        pool: workers that can do ``jobs``.
        jobs: in the pool's order.
        writeback: told what was written into the page cache.
        observer: told of phases and shards.
        began: ``time.perf_counter()`` when the save began.

    Attributes:
        rounds: one for each sweep over the dirty bitmap.
        written: the sum of all rounds.
    """

    def __init__(
        self,
        task: Task,
        pool: WorkerPool,
        jobs: Sequence[Job],
        writeback: EarlyWriteback,
        observer: Observer,
        began: float,
    ) -> None:
        self._task = task
        self._ledger = task.ledger
        self._pool = pool
        self._jobs = jobs
        self._writeback = writeback
        self._observer = observer
        self._began = began
        self.rounds: list[RoundReport] = []
        self.written = Tally()

    @property
    def workers(self) -> Sequence[Worker]:
        """The pool's workers."""
        return self._pool.workers

    def round(
        self,
        job: Job,
        *,
        while_running: bool,
        cached: bool,
        phase: str = "write",
        shard_pages: int | None = None,
        finds_changes: bool = False,
    ) -> Tally:
        """Have all dirty pages written that may contain data; each becomes clean when its shard is acknowledged.

        Args:
            job: writes them.
            while_running: whether the machine runs meanwhile.
            cached: whether the pages go into the page cache.
            phase: name of the phase for the observer.
            shard_pages: approximate number of pages in a shard; None for a default that fits any kind of work.
            finds_changes: whether the job compares pages with the file, and writes only those that differ.
        """
        started, dirty = time.perf_counter(), sum(bitmap.count() for bitmap in self._ledger.dirty)
        self._ledger.leave_out_holes()
        tally = self.write(
            job,
            self._ledger.dirty,
            cached=cached,
            phase=phase,
            shard_pages=shard_pages,
            number=len(self.rounds),
        )
        if finds_changes:
            dirty = tally.written_pages + tally.zero_pages
        self.written.add(tally)
        self.rounds.append(
            RoundReport(
                dirty_pages=dirty,
                written_pages=tally.written_pages,
                gap_pages=tally.gap_pages,
                zero_pages=dirty - tally.written_pages,
                while_running=while_running,
                seconds=time.perf_counter() - started,
            )
        )
        return tally

    def written_by_others(self, pages: int, size: int) -> None:
        """Count pages of the last round, ``size`` bytes in all, that processes other than the workers have written."""
        last = self.rounds[-1]
        self.rounds[-1] = replace(last, written_pages=last.written_pages + pages, zero_pages=last.zero_pages - pages)
        self.written.bytes += size

    def write(
        self,
        job: Job,
        pages: Sequence[PageBitmap],
        *,
        cached: bool,
        phase: str = "write",
        shard_pages: int | None = None,
        number: int = 0,
    ) -> Tally:
        """Have pages written, without recording a round.

        Args:
            job: writes them.
            pages: which ones, a bitmap for each block.
            cached: whether they go into the page cache.
            phase: name of the phase for the observer.
            shard_pages: as for ``round``.
            number: of the round.
        """

        def written(message: ShardDone, worker: int) -> None:
            shard = message.shard
            # only now, so that the pages of a lost shard stay dirty
            self._ledger.dirty[shard.block].words[shard.first_word : shard.first_word + shard.words] = 0
            self._observer.shard(traced(message, worker, self._task.layout, self._began))
            if cached and message.tally.bytes:
                span = shard_span(self._task.layout, shard)
                # late if a guest waits: copying is slower while the device is busy
                at_once = self._task.options.publishing.durable and (phase == FIRST_PASS or not self._task.guest_waits)
                self._writeback.wrote(*span, message.tally.bytes, at_once=at_once)

        return run_job(
            self._pool,
            self._jobs.index(job),
            pages,
            phase=phase,
            page_size=self._task.layout.blocks[0].block.page_size,
            observer=self._observer,
            on_done=written,
            number=number,
            shard_pages=shard_pages,
        )
