"""Stopped: write all pages while the machine stands still. The simplest way, with which others are compared."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.engine.capture.capture import Capture
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.rehearsal import write_firmware
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.workers.worker import Job


class Stopped(Capture):
    """One round over everything.

    Args:
        task: what to save, and how.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._job = RoundJob(task.ledger, task.writer(), window_pages=task.choice.window_pages)

    def jobs(self) -> Sequence[Job]:
        """One that writes what is dirty (Capture.jobs)."""
        return [self._job]

    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        """Mark everything as dirty (Capture.rehearse)."""
        if self._task.guest_waits:
            self._task.ledger.map_newly_touched(self._task.guest_blocks)
        write_firmware(run, self._job, self._task)
        self._task.ledger.all_dirty()

    def stopped(self, run: Coordinator) -> None:
        """Write everything (Capture.stopped)."""
        task = self._task
        task.ledger.map_newly_touched(task.guest_blocks)  # even if it stood still already: it may have stopped only now
        run.round(self._job, while_running=False, cached=not task.choice.direct, shard_pages=task.choice.shard_pages)
