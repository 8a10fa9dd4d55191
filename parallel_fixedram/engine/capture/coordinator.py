"""Coordinator: hands rounds of pages to workers, and keeps account of what they did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.save import RoundReport
from parallel_fixedram.core.shards import plan_shards
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.early_writeback import EarlyWriteback
from parallel_fixedram.engine.workers.messages import ShardDone, Tally
from parallel_fixedram.engine.workers.pool import Worker, WorkerPool
from parallel_fixedram.engine.workers.progress import run_job, shard_span, traced
from parallel_fixedram.engine.workers.worker import Job

FIRST_PASS = "first pass"
"""The phase in which a running guest's pages are written once, before those that changed."""


class Coordinator:
    """What a capture has done, and how it has workers do it.

    Args:
        task: what is to be saved, and how.
        pool: workers that can do ``jobs``.
        jobs: in the pool's order.
        writeback: is told what is in the page cache.
        observer: hears of phases and shards.
        began: ``time.perf_counter()`` when the save began.

    Attributes:
        rounds: one a sweep over the dirty bitmap.
        written: the sum of what they did.
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
        """The workers as the pool sees them."""
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
        """Have all dirty pages written that may hold something; each is clean when its shard is acknowledged.

        Args:
            job: how.
            while_running: whether the machine runs meanwhile.
            cached: whether the pages go into the page cache.
            phase: what the observer is told that this is.
            shard_pages: about how many pages a shard shall have; None for what fits any kind of work.
            finds_changes: whether the job finds out which pages are not what the file holds, and writes only those.
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
        """Pages of the last round, ``size`` bytes of them, that somebody else than the workers wrote."""
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
        """Have pages written; no round of its own.

        Args:
            job: how.
            pages: which, one bitmap a block.
            cached: whether they go into the page cache.
            phase: what the observer is told that this is.
            shard_pages: about how many pages a shard shall have; None for what fits any kind of work.
            number: of the round.
        """

        def written(message: ShardDone, worker: int) -> None:
            shard = message.shard
            # only now: the pages of a lost shard stay dirty
            self._ledger.dirty[shard.block].words[shard.first_word : shard.first_word + shard.words] = 0
            self._observer.shard(traced(message, worker, self._task.layout, self._began))
            if cached and message.tally.bytes:
                span = shard_span(self._task.layout, shard)
                # if a guest waits, as late as possible: copying is slower while the device works
                at_once = self._task.options.publishing.durable and (phase == FIRST_PASS or not self._task.waits)
                self._writeback.wrote(*span, message.tally.bytes, at_once=at_once)

        return run_job(
            self._pool,
            self._jobs.index(job),
            plan_shards(pages, workers=len(self._pool.workers), round_number=number, target=shard_pages),
            phase=phase,
            page_size=self._task.layout.blocks[0].block.page_size,
            observer=self._observer,
            on_done=written,
        )
