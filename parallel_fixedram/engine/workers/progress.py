"""Run a job over pages, and report its progress to an observer."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.bitmap import WORD_PAGES, PageBitmap
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.save import ShardTrace
from parallel_fixedram.core.shards import Shard, plan_shards
from parallel_fixedram.engine.workers.messages import ShardDone, Tally
from parallel_fixedram.engine.workers.pool import OnDone, WorkerPool
from parallel_fixedram.format.layout import FileLayout


def run_job(
    pool: WorkerPool,
    job: int,
    pages: Sequence[PageBitmap],
    *,
    phase: str,
    page_size: int,
    observer: Observer = SILENT,
    on_done: OnDone | None = None,
    number: int = 0,
    shard_pages: int | None = None,
) -> Tally:
    """Have a pool handle pages, in shards.

    Args:
        pool: the workers.
        job: index of the job in the pool's list.
        pages: which ones, a bitmap for each block.
        phase: name of the phase for the observer.
        page_size: of these pages, bytes.
        observer: told of the phase and of every shard's bytes; not called if there are no pages.
        on_done: called for every shard when it is done, before the observer.
        number: of the round.
        shard_pages: approximate number of pages in a shard; None for a default that fits any kind of work.

    Raises:
        FixedRamError: what ``WorkerPool.run`` raises.
    """

    def acknowledged(message: ShardDone, worker: int) -> None:
        if on_done:
            on_done(message, worker)
        observer.advanced(message.shard.pages * page_size)

    shards = plan_shards(pages, workers=len(pool.workers), round_number=number, target=shard_pages)
    if total := sum(shard.pages for shard in shards) * page_size:
        observer.phase(phase, total)
    return pool.run(job, shards, acknowledged)


def shard_span(layout: FileLayout, shard: Shard) -> tuple[int, int]:
    """File offset of a shard's first page, and its length in bytes."""
    saved, first = layout.blocks[shard.block], shard.first_word * WORD_PAGES
    pages = min(shard.words * WORD_PAGES, saved.block.pages - first)
    return saved.page_offset(first), pages * saved.block.page_size


def traced(message: ShardDone, worker: int, layout: FileLayout, began: float) -> ShardTrace:
    """A shard's entry in a trace.

    Args:
        message: what was done.
        worker: index of the worker.
        layout: where the pages went.
        began: ``time.perf_counter()`` when the save began.
    """
    shard, (offset, length) = message.shard, shard_span(layout, message.shard)
    return ShardTrace(
        worker=worker,
        round=shard.round,
        block=shard.block,
        first_page=shard.first_word * WORD_PAGES,
        pages=length // layout.blocks[shard.block].block.page_size,
        offset=offset,
        bytes=message.tally.bytes,
        started=message.started - began,
        ended=message.started - began + message.seconds,
        write_bins=message.tally.write_bins,
    )
