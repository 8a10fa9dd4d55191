"""Rounds: write the pages in a dirty log, again and again while the guest runs, and once more while it stands still.

Pages are written from where they are. One that changes between its write and its digest, or its test for zero, is in
the log by then, and a later round puts all of that right; in the last one nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import DirtySource, Machine
from parallel_fixedram.engine.capture.capture import Capture
from parallel_fixedram.engine.capture.coordinator import FIRST_PASS, Coordinator
from parallel_fixedram.engine.capture.rehearsal import write_firmware
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.workers.worker import Job

SMALL_ROUND_PAGES = 1024
"""The guest is stopped when fewer pages than this are dirty: they take about a millisecond."""


def dirty_log(machine: Machine) -> DirtySource:
    """The machine's dirty log.

    Raises:
        RequestError: it has none.
    """
    dirty = machine.dirty_source()
    if dirty is None:
        raise RequestError("a save in rounds needs a dirty log, and this RAM has none")
    return dirty


class DirtyRounds(Capture):
    """Writes rounds for as long as they make the last one shorter.

    Args:
        task: what to save, and how; with a dirty log.
    """

    def __init__(self, task: Task) -> None:
        assert task.dirty is not None, "dirty_log() comes first"
        self._task = task
        self._dirty = task.dirty
        self._job = RoundJob(task.ledger, task.writer(), window_pages=task.choice.window_pages)

    def jobs(self) -> Sequence[Job]:
        """One that writes what is dirty (Capture.jobs)."""
        return [self._job]

    def before(self, run: Coordinator) -> None:
        """Write rounds until another one would not make the last one noticeably shorter (Capture.before)."""
        ledger = self._task.ledger
        ledger.all_dirty()
        # so much that the first round is never left out
        before = 2 * sum(bitmap.pages for bitmap in ledger.dirty)
        for number in range(self._task.options.capture.max_rounds - 1):
            # before the pages are written: what the guest writes meanwhile is in the next log
            ledger.add_dirty(self._dirty, self._task.guest_blocks)
            now = sum(bitmap.count() for bitmap in ledger.dirty)
            if now < SMALL_ROUND_PAGES or now > before // 2:
                break
            self._round(run, while_running=True, first=number == 0)
            before = now

    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        """Only firmware: the dirty log knows what is left to write, even after a torn instant (Capture.rehearse)."""
        write_firmware(run, self._job, self._task)

    def stopped(self, run: Coordinator) -> None:
        """Write the last round (Capture.stopped)."""
        self._task.ledger.add_dirty(self._dirty, self._task.guest_blocks)
        self._round(run, while_running=False, first=not run.rounds)

    def _round(self, run: Coordinator, *, while_running: bool, first: bool) -> None:
        choice, asked = self._task.choice, self._task.options.writing
        run.round(
            self._job,
            while_running=while_running,
            cached=not choice.direct,
            phase=FIRST_PASS if while_running and first else "write",
            shard_pages=choice.shard_pages if first else asked.shard_pages,
        )
