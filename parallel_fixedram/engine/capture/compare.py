"""Compare: write all pages while the guest runs; then, while it stands still, those whose hash has changed.

This needs no special rights and works with any guest. The pause grows with RAM, because all of it is read once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.shards import WINDOW_PAGES
from parallel_fixedram.engine.capture.capture import Capture
from parallel_fixedram.engine.capture.coordinator import FIRST_PASS, Coordinator
from parallel_fixedram.engine.capture.rehearsal import write_firmware
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.changed_job import ChangedJob
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.host.files.page_cache import dirty_room


class Compare(Capture):
    """Reads everything twice.

    Args:
        task: what to save, and how.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._hashes = Hashes([each.block for each in task.guest_blocks])
        self.reserves = task.choice.direct  # else the first pass, before the pause, notices a full file system
        first = task.writer(may_change=True, hashes=self._hashes)
        self._first = RoundJob(task.ledger, first, window_pages=task.choice.window_pages, hashes=self._hashes)
        # few pages have changed, and the page cache takes them sooner than the device
        last = PageWriter(task.guest_blocks, task.blocks, task.ledger, task.buffered, max_gap_pages=0)
        self._last = ChangedJob(task.guest_blocks, task.ledger, self._hashes, last, window_pages=WINDOW_PAGES)

    def jobs(self) -> Sequence[Job]:
        """One that writes everything, and one that writes what changed (Capture.jobs)."""
        return [self._first, self._last]

    def before(self, run: Coordinator) -> None:
        """Write every page; later we find out which have changed meanwhile (Capture.before)."""
        task = self._task
        task.ledger.all_dirty()
        task.ledger.leave_out_holes()
        tally = run.round(
            self._first,
            while_running=True,
            cached=not task.choice.direct,
            phase=FIRST_PASS,
            shard_pages=task.choice.shard_pages,
        )
        if not task.choice.direct and tally.bytes > dirty_room():
            task.buffered.sync()  # else the kernel would slow down the few writes that the guest waits for

    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        """Mark all pages as suspect, again after a torn instant (Capture.rehearse)."""
        ledger = self._task.ledger
        if torn:
            self._hashes.distrust(ledger.data, ledger.present)
        ledger.map_newly_touched(self._task.guest_blocks)
        write_firmware(run, self._last, self._task)
        ledger.all_dirty()

    def stopped(self, run: Coordinator) -> None:
        """Compare every page with what was written, and write those that changed (Capture.stopped)."""
        self._task.ledger.map_newly_touched(self._task.guest_blocks)
        shard_pages = self._task.options.writing.shard_pages
        run.round(self._last, while_running=False, cached=True, shard_pages=shard_pages, finds_changes=True)
