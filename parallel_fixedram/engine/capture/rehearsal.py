"""Rehearsal: do what the last round does once while nobody is waiting.

Memory that coordinator and workers touch for the first time after the fork is copied page by page, which takes longer
than a small round.
"""

from __future__ import annotations

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.workers.worker import Job


def write_firmware(run: Coordinator, job: Job, task: Task) -> None:
    """Have firmware written. It stays dirty, and is written again in the last round.

    Args:
        run: has workers write.
        job: the job of the last round.
        task: what to save.
    """
    ledger, firmware = task.ledger, [PageBitmap(bitmap.pages) for bitmap in task.ledger.dirty]
    for each, bitmap in zip(task.guest_blocks, firmware, strict=True):
        if each.keeps_zero_pages:
            bitmap.set_all()
    # twice, because what was written is clean
    for again in (False, True):
        for dirty, some in zip(ledger.dirty, firmware, strict=True):
            dirty.words |= some.words
        if not again:
            run.write(job, firmware, cached=not task.choice.direct)
