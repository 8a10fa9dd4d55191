"""Snapshot: a running machine's RAM as it is at one instant, T, captured while it runs on.

::

    prepare()   memory is registered; handler, spill writer and watchdog are forked; we close the userfaultfd
    protect()   all memory is protected, while the machine runs
    fix()       the machine stands still: this is T
    add_noted() it runs again: pages that were touched since the data map was read are added to it
    ...         workers do shards of ``job``
    end()       all shards are done: memory is released, the last copies are written
    finish()    nothing is protected any more: figures
"""

from __future__ import annotations

from parallel_fixedram.core.bitmap import WORD_PAGES, runs_of_ones, words_for
from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import FixedRamError, WorkerError
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.save_options import CAPTURE_MEMORY, MAX_STALL_SECONDS
from parallel_fixedram.engine.capture.snapshot.job import CaptureJob
from parallel_fixedram.engine.capture.snapshot.marks import Marks
from parallel_fixedram.engine.capture.snapshot.messages import Command, Figures
from parallel_fixedram.engine.capture.snapshot.pieces import USUAL, Pieces
from parallel_fixedram.engine.capture.snapshot.places import Origin, Target
from parallel_fixedram.engine.capture.snapshot.processes import Processes
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.host.memory.process_memory import ProcessSource
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd


class Snapshot(Closing):
    """Context manager around a capture. Make and use it in one thread; its processes die with that thread.

    Args:
        origin: the RAM; its protected blocks are registered with the userfaultfd.
        target: the file.
        userfaultfd: enabled; owned by the snapshot from now on.
        staging: where workers copy to and write from.
        window_pages: number of pages that they copy and write at a time, a multiple of 64.
        spill: a channel to the file that nobody else uses; it bypasses the page cache if the workers' channels do.
        max_stall: how long a write of the guest may wait, seconds; if it has to wait longer the snapshot is void.
        capture_memory: most bytes of copies that may wait to be written.
        pieces: how much the handler does at a time.

    Attributes:
        job: what workers do; fork them after ``prepare``, so that they do not inherit the userfaultfd.
    """

    def __init__(
        self,
        origin: Origin,
        target: Target,
        userfaultfd: Userfaultfd,
        *,
        staging: Staging,
        window_pages: int,
        spill: Channel,
        max_stall: float = MAX_STALL_SECONDS,
        capture_memory: int = CAPTURE_MEMORY,
        pieces: Pieces = USUAL,
    ) -> None:
        self._origin = origin
        self._target = target
        self._userfaultfd = userfaultfd
        self._spill = spill
        self._max_stall = max_stall
        self._capture_memory = capture_memory
        self._pieces = pieces
        self._marks = Marks(origin.groups.count, [saved.block for saved in target.blocks])
        self._processes: Processes | None = None
        self.job = CaptureJob(origin, target, self._marks, staging, window_pages=window_pages)

    def prepare(self) -> None:
        """Start all processes but the workers. From here on only the handler has the userfaultfd.

        Raises:
            HostError: no process or no memory can be got; or guest RAM cannot be reached.
        """
        page_size = max(saved.block.page_size for saved in self._target.blocks)
        self._processes = Processes(
            self._origin,
            self._target,
            self._marks,
            Ring(max(self._capture_memory // (WORD_PAGES * page_size), 1), page_size),
            self._userfaultfd,
            spill=self._spill,
            max_stall=self._max_stall,
            pieces=self._pieces,
        )

    def protect(self) -> None:
        """From now on, note what the guest writes.

        Read the data maps of whole blocks before the call, and again after it: what was touched in between is not
        noted.

        Raises:
            FixedRamError: the snapshot is void.
        """
        self._running.ask(Command.PROTECT)
        for source in self._origin.sources:
            if isinstance(source, ProcessSource):
                source.note_protection()

    def fix(self) -> None:
        """Make this T. No page may change during the call.

        Raises:
            FixedRamError: the snapshot is void.
        """
        self._running.ask(Command.FIX, 2 * self._max_stall)

    def add_noted(self) -> None:
        """Add to the data maps what was touched between ``protect`` and T; called when the guest may run again.

        Raises:
            HostError: its memory can no longer be reached.
        """
        noted, firsts = self._marks.noted, self._origin.groups.firsts
        for first, source, data in zip(firsts, self._origin.sources, self._origin.data, strict=True):
            for word, words in runs_of_ones(noted[first : first + words_for(data.pages)]).tolist():
                page = word * WORD_PAGES
                pages = PageRange(page, min(words * WORD_PAGES, data.pages - page))
                data.set_ranges(source.data_ranges(pages))

    def end(self) -> None:
        """All shards are done: release memory, and write the last copies.

        Returns when pages, bits and digests are complete. If the guest has discarded memory before the call, the
        snapshot is void; to be sure that we hear of that, get an answer from the guest's process before the call.

        Raises:
            FixedRamError: the snapshot is void, or a copy could not be written.
        """
        watched = self._running.are_watched()  # ask before END, because the watchdog ends with the handler
        self._running.ask(Command.END)
        if not watched:
            raise WorkerError("the snapshot is void: nobody watched the process that serves the guest's page faults")
        # after END: until then the handler may have more copies
        self._running.end_spilling()
        # each had a table of its own, because a word must not have two writers
        for present, spilled in zip(self._target.present, self._marks.spilled, strict=True):
            present.words |= spilled.words

    def finish(self) -> Figures | None:
        """Wait until memory is released; returns figures, or None if the handler died meanwhile, which does no harm."""
        return self._running.figures()

    def cause(self) -> FixedRamError | None:
        """Why the snapshot is void, which says more than the error of a worker that failed for it; None if it is
        not."""
        return self._processes.cause() if self._processes else None

    def close(self) -> None:
        """Release the guest's memory and end all processes; may be called more than once."""
        if self._processes:
            self._processes.close()
        self._userfaultfd.close()

    @property
    def _running(self) -> Processes:
        assert self._processes, "prepare() comes first"
        return self._processes
