"""Run a job over shards and tell somebody how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel_fixedram.core.plan import Shard
from parallel_fixedram.core.report import ShardTrace
from parallel_fixedram.engine.messages import ShardDone, Tally
from parallel_fixedram.engine.pool import OnDone, WorkerPool

Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``, in bytes; called as shards are acknowledged."""

Trace = Callable[[ShardTrace], None]
"""Told who wrote which part of the file when, as shards are acknowledged."""


def run_job(
    pool: WorkerPool,
    job: int,
    shards: Sequence[Shard],
    *,
    phase: str,
    page_size: int,
    progress: Progress | None,
    on_done: OnDone | None = None,
) -> Tally:
    """Have a pool do ``shards``.

    Args:
        pool: the workers.
        job: number of the job in the pool's list.
        shards: what to do.
        phase: what ``progress`` is told that this is.
        page_size: of the shards' pages, bytes.
        progress: hears of every shard.
        on_done: called for every shard when it is acknowledged, before ``progress``.

    Raises:
        FixedRamError: what ``WorkerPool.run`` raises.
    """
    total, done = sum(shard.pages for shard in shards) * page_size, 0

    def acknowledged(message: ShardDone, worker: int) -> None:
        nonlocal done
        if on_done:
            on_done(message, worker)
        done += message.shard.pages * page_size
        if progress:
            progress(phase, done, total)

    return pool.run(job, shards, acknowledged)
