"""Save: from a machine's RAM to a published file.

::

    file sized, data map asked, space reserved, workers up, RAM mapped     the guest runs
    [rounds: sync dirty bitmap -> plan -> shards -> acknowledged]          the guest runs  (live)
    [pre-copy: every page written, and hashed]                             the guest runs  (not live)
    rehearsal: disks synced, data map asked again, firmware written        the guest runs
    pause -> last round and device state at the same time -> resume        the guest stands still
    [torn by somebody: rehearsal, pause and last round once more]
    digests, bitmaps, heads, tail, trailer, clone stream -> sync, publish  the guest runs

Nothing that can be done before or after is done while the guest stands still. The file gets its name only when every
shard is acknowledged and everything is on stable storage. What somebody else's act has torn is taken again; where the
machine is no more made of what was opened, all of it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import ExitStack

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.choice import Choice, DirectIO
from parallel_fixedram.core.errors import DurabilityError, HostError, MachineChanged, MachineError, RequestError
from parallel_fixedram.core.protocols import DirtySource, Machine
from parallel_fixedram.core.reports.save import RoundReport, SaveBytes, SaveReport, SaveSeconds, WorkerReport
from parallel_fixedram.core.shards import Shard, plan_shards
from parallel_fixedram.core.targets import recorded_page_bits
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.capture.save_jobs import DIGEST, PHASES, PRECOPY, WRITE, save_jobs
from parallel_fixedram.engine.pages.bitmaps import SharedBitmaps, map_data, map_grown, shared_words, sync_dirty
from parallel_fixedram.engine.pages.early_writeback import EarlyWriteback
from parallel_fixedram.engine.pages.precopy import KnownPages
from parallel_fixedram.engine.pages.reserve import Reservation
from parallel_fixedram.engine.pages.staging import SLOTS
from parallel_fixedram.engine.tuning.decide import Decision, decide, open_direct
from parallel_fixedram.engine.tuning.save_options import Cache, Durability, SaveOptions
from parallel_fixedram.engine.workers.messages import ShardDone, Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.engine.workers.progress import Progress, Trace, run_job, shard_span, traced
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host import linux
from parallel_fixedram.host.facts import host_facts
from parallel_fixedram.host.files.direct_channel import DirectChannel
from parallel_fixedram.host.files.page_cache import cached_bytes, dirty_room, drop_from_cache
from parallel_fixedram.host.files.publish import PendingFile
from parallel_fixedram.image.ending import Ending
from parallel_fixedram.image.image import block_report

CHANGED = "memory or devices were plugged in or out while the machine was saved"

SMALL_ROUND_PAGES = 1024
"""A live save stops the guest when fewer pages than this are dirty: they take about a millisecond."""

MOST_INSTANTS = 4
"""How often a guest is stopped, should others tear what was read of it each time."""
MOST_SAVES = 3
"""How often a save begins, should blocks or devices come or go each time."""


def save(
    machine: Machine,
    path: str,
    options: SaveOptions,
    *,
    dirty: DirtySource | None = None,
    progress: Progress | None = None,
    trace: Trace | None = None,
) -> SaveReport:
    """Save a machine's RAM and device state to ``path``.

    Args:
        machine: what to save.
        path: final name of the file.
        options: how.
        dirty: says which pages were written, everything since before this call included; a live save needs it.
        progress: called as shards are acknowledged.
        trace: told who wrote which part of the file when.

    Raises:
        FixedRamError: nothing was published, the machine goes on, and nothing is left behind; except for
            DurabilityError, where the file is published.
    """
    if options.max_rounds > 1 and dirty is None:
        raise RequestError("a live save needs to know which pages were written, and this RAM has no dirty log")
    notes: list[str] = []
    while True:
        try:
            with PendingFile(path, overwrite=options.overwrite) as pending:
                run = _Save(machine, pending, options, dirty, progress, trace)
                run.notes += notes
                run.carry_out()
            return run.report()
        except MachineChanged:
            if len(notes) == MOST_SAVES - 1:
                raise
        except DurabilityError:
            raise
        except HostError:  # memory that was unplugged cannot be read
            if len(notes) == MOST_SAVES - 1 or not machine.look_again():
                raise
        notes.append(f"{CHANGED}: the save began again")


class _Save:
    """One save, its phases in order."""

    def __init__(
        self,
        machine: Machine,
        pending: PendingFile,
        options: SaveOptions,
        dirty: DirtySource | None,
        progress: Progress | None,
        trace: Trace | None,
    ) -> None:
        self.trace = trace
        self.started = time.perf_counter()
        self.machine = machine
        self.pending = pending
        self.options = options
        self.dirty = dirty
        self.live = options.max_rounds > 1
        self.progress = progress
        self.guest_blocks = machine.guest_blocks()
        blocks = [each.block for each in self.guest_blocks]
        self.layout = FileLayout.plan(
            machine.name,
            blocks,
            options.offset,
            target=machine.target,
            page_bits=recorded_page_bits(machine.target),
        )
        self.bitmaps = SharedBitmaps(blocks)
        self.tables = shared_words(len(blocks))
        self.space = Reservation(pending, self.layout.blocks)
        self.notes: list[str] = []
        self.rounds: list[RoundReport] = []
        self.written = Tally()
        self.workers: tuple[WorkerReport, ...] = ()
        self.pause = Pause(machine)
        self.instants = 0
        self.prepare_seconds = self.last_round_seconds = self.digest_seconds = 0.0
        self.sync_seconds = self.publish_seconds = self.total_seconds = 0.0
        self.ending: Ending | None = None
        self.decision: Decision
        self.decided = 0.0
        self.writeback: EarlyWriteback
        self.waits = False
        self.known: KnownPages | None = None
        self.direct = False
        self.cached_bytes: int | None = None
        self.file_bytes = self.allocated_bytes = 0

    def carry_out(self) -> None:
        """All of it: pages into the file, then their digests, then the rest of the file, which is published."""
        if self.layout.base:
            self.pending.copy_prefix(self.layout.base)
        self.pending.set_size(self.layout.ram_end)
        map_data(self.guest_blocks, self.bitmaps.data)
        self.waits = self.machine.prepare()
        channel = open_direct(self.pending, self.options)
        page_size = self.layout.blocks[0].block.page_size
        self._tell("decide")
        self.decision = decide(
            self.options,
            self.bitmaps.data,
            page_size,
            self.pending.folder,
            waits=self.waits,
            takes_direct=channel is not None if self.options.direct_io is not DirectIO.OFF else None,
        )
        self.decided = time.perf_counter()
        self.direct = self.choice.direct
        if self.choice.precopy:
            self.known = KnownPages([saved.block for saved in self.layout.blocks])
        if isinstance(channel, DirectChannel) and self.direct and not channel.has_queue(self.choice.channels * SLOTS):
            self.notes.append("the kernel allows no asynchronous I/O: direct writes go one by one")
        self._reserve()
        jobs = save_jobs(
            self.guest_blocks,
            self.layout,
            self.bitmaps,
            self.tables,
            self.choice,
            buffered=self.pending.channel,
            direct=channel,
            known=self.known,
        )
        with ExitStack() as stack:
            pool = stack.enter_context(WorkerPool(jobs, self.choice.channels, stall_seconds=self.options.stall_seconds))
            self.writeback = stack.enter_context(EarlyWriteback(self.pending.fd, dirty_room()))
            self._rounds(pool)
            self.workers = tuple(
                WorkerReport(shards=w.shards, written_pages=w.tally.written_pages, seconds=w.seconds)
                for w in pool.workers
            )
            if self.ending is None:
                self._end_stream()
                if not self.known:
                    self._digest(pool)
            pool.dismiss()  # they end while the file is finished
            if self.known:
                started = time.perf_counter()
                self.known.write_digests(self.pending.channel, self.tables, self.bitmaps.file)
                self.digest_seconds = time.perf_counter() - started
            self._finish()

    @property
    def choice(self) -> Choice:
        """How pages are written."""
        return self.decision.choice

    def _finish(self) -> None:
        """Everything but the pages; then sync and publish."""
        assert self.ending is not None, "the pages come first"
        channel = self.pending.channel
        self.space.give_back(self.bitmaps.file, self.choice.gap_pages)
        self.ending.write(channel)
        started = time.perf_counter()
        if self.options.durability is Durability.FULL:
            self._tell("sync")
            channel.sync()
        synced = time.perf_counter()
        if self.options.cache is Cache.DROP:
            drop_from_cache(self.pending.fd)
        self.cached_bytes = cached_bytes(self.pending.fd)
        status = channel.stat()
        self.file_bytes, self.allocated_bytes = status.st_size, status.st_blocks * 512
        self.pending.publish()
        if self.options.durability is Durability.FULL:
            self.pending.sync_folder()
        self.sync_seconds = synced - started
        published = time.perf_counter()
        self.publish_seconds, self.total_seconds = published - synced, published - self.started

    def _tell(self, phase: str) -> None:
        """Somebody may want to know what is going on; how long it takes nobody knows."""
        if self.progress:
            self.progress(phase, 0, 0)

    def report(self) -> SaveReport:
        """What happened."""
        channels, waited = self.choice.channels, self.pause.was_running
        return SaveReport(
            file=self.pending.path,
            machine=self.machine.name,
            channels=channels,
            direct_io=self.direct,
            capabilities=dict(self.options.capabilities),
            blocks=tuple(
                block_report(saved, present.count())
                for saved, present in zip(self.layout.blocks, self.bitmaps.file, strict=True)
            ),
            rounds=tuple(self.rounds),
            seconds=SaveSeconds(
                total=self.total_seconds,
                prepare=self.prepare_seconds,
                pause=self.pause.seconds if waited else 0.0,
                sync_disks=self.pause.sync_disks_seconds,
                stop=self.pause.stop_seconds if waited else 0.0,
                device_state=self.pause.state_seconds,
                ram=self.last_round_seconds,
                cont=self.pause.cont_seconds if waited else 0.0,
                scan=self.written.scan_seconds / channels,
                write=self.written.write_seconds / channels,
                digest=self.digest_seconds + self.written.digest_seconds / channels,
                sync=self.sync_seconds,
                publish=self.publish_seconds,
            ),
            bytes=SaveBytes(
                ram=sum(saved.block.used_length for saved in self.layout.blocks),
                written=self.written.bytes,
                file=self.file_bytes,
                allocated=self.allocated_bytes,
                cached=self.cached_bytes,
            ),
            choice=self.decision.report(self.last_round_seconds, self.started + self.total_seconds - self.decided),
            workers=self.workers,
            host=host_facts(self.pending.path),
            notes=(*self.notes, *self.pause.notes),
        )

    def _reserve(self) -> None:
        """Reserve space for the data; not where the source cannot tell data from holes, which may be nearly all.

        What is pre-copied through the page cache finds out about a full file system before the guest is stopped.
        """
        if self.choice.precopy and not self.direct:
            return
        for number, (each, data) in enumerate(zip(self.guest_blocks, self.bitmaps.data, strict=True)):
            if each.source.tells_holes:
                self.space.take(number, data, self.choice.gap_pages if self.direct else None)

    def _rounds(self, pool: WorkerPool) -> None:
        for bitmap in self.bitmaps.dirty:
            bitmap.set_all()
        before = 2 * sum(bitmap.pages for bitmap in self.bitmaps.dirty)
        for number in range(self.options.max_rounds - 1):
            sync_dirty(self.dirty, self.guest_blocks, self.bitmaps)
            now = sum(bitmap.count() for bitmap in self.bitmaps.dirty)
            if now < SMALL_ROUND_PAGES or now > before // 2:
                break  # another round would not make the stopped one noticeably shorter
            self._round(pool, number)
            before = now
        if self.known:
            self._precopy(pool)
        while (torn := self._instant(pool)) is not None:
            if self.instants == MOST_INSTANTS:
                raise MachineError(f"{torn} while it was saved, at each of {MOST_INSTANTS} tries")
            stopped = 1000 * self.pause.seconds if self.pause.was_running else 0.0
            self.notes.append(
                f"{torn} while it was saved: the last round was taken again, after a stop of {stopped:.1f} ms"
            )
            self._forget_instant()
        if self.machine.look_again():
            raise MachineChanged(f"{CHANGED}, {MOST_SAVES} times", hint="save when nothing is plugged in or out")

    def _instant(self, pool: WorkerPool) -> str | None:
        """What is left to save, of a machine that stands still; returns what somebody did about that."""
        self.instants += 1
        self._rehearse(pool)
        self.prepare_seconds = time.perf_counter() - self.started
        with self.pause as pause:
            sync_dirty(self.dirty, self.guest_blocks, self.bitmaps)
            pause.begin_device_state()
            if not pause.was_running and not self.rounds:
                self._end_stream()  # nobody waits: digests are written along with the pages
            if self.dirty is None:  # also where nothing ran: it may have stopped by itself only now
                map_grown(self.guest_blocks, self.bitmaps.data)
            started = time.perf_counter()
            self._round(pool, len(self.rounds))
            self.last_round_seconds = time.perf_counter() - started
            pause.device_state()  # it has to be there before the machine goes on
        return self.pause.torn

    def _forget_instant(self) -> None:
        """Make ready for another last round; hashes and dirty log tell what it has to write, or it writes all."""
        self.pause = Pause(self.machine)
        if self.known:
            self.known.distrust(self.bitmaps.data, self.bitmaps.file)
        if self.dirty is None:
            for bitmap in self.bitmaps.dirty:
                bitmap.set_all()
        if self.ending is not None:  # with another device state everything behind the pages has another place
            self.ending = None
            self.tables[:] = 0
            self.pending.set_size(self.layout.ram_end)

    def _precopy(self, pool: WorkerPool) -> None:
        """Write all pages while the guest runs; which of them changed meanwhile is found out when it stands still."""
        started = time.perf_counter()
        shards = plan_shards(self.bitmaps.data, workers=self.choice.channels, target=self.choice.shard_pages)
        tally = self._run(pool, PRECOPY, shards)
        if not self.direct and tally.bytes > dirty_room():
            self.pending.channel.sync()  # or the kernel would slow down the few writes that a guest waits for
        self._note_round(sum(bitmap.count() for bitmap in self.bitmaps.data), tally, started)

    def _rehearse(self, pool: WorkerPool) -> None:
        """Go once through what the last round does, while nobody waits.

        Memory that coordinator and workers touch for the first time after the fork is copied page by page: that takes
        longer than a small round itself. Firmware is written, and again in the last round.
        """
        self._tell("prepare")
        self.pause.prepare()
        if self.dirty is None and self.waits:
            map_grown(self.guest_blocks, self.bitmaps.data)
        firmware = [PageBitmap(dirty.pages) for dirty in self.bitmaps.dirty]
        for each, bitmap in zip(self.guest_blocks, firmware, strict=True):
            if each.keeps_zero_pages:
                bitmap.set_all()
        for dirty, some in zip(self.bitmaps.dirty, firmware, strict=True):
            dirty.words |= some.words
        self._run(pool, WRITE, plan_shards(firmware, workers=self.choice.channels))
        for dirty, some in zip(self.bitmaps.dirty, firmware, strict=True):
            dirty.words |= some.words
        self.pause.prepare()

    def _end_stream(self) -> None:
        """Put together and lay out what follows the last page: device sections, trailer, clone stream."""
        self.ending = Ending(self.layout, self.guest_blocks, self.bitmaps.file, self.pause.device_state())
        self.pending.set_size(self.ending.file_length)
        self.ending.tell_tables(self.tables)  # tells the workers that digests are wanted, and where they go

    def _round(self, pool: WorkerPool, number: int) -> None:
        started = time.perf_counter()
        dirty_pages = sum(bitmap.count() for bitmap in self.bitmaps.dirty)
        for dirty, data in zip(self.bitmaps.dirty, self.bitmaps.data, strict=True):
            dirty.words &= data.words  # a page outside of data is zero and always was: nothing to do
        tally = self._run(
            pool,
            WRITE,
            plan_shards(
                self.bitmaps.dirty,
                workers=self.choice.channels,
                round_number=number,
                target=self.choice.shard_pages if number == 0 else self.options.shard_pages,
            ),
        )
        if self.known:  # which pages are dirty was found out on the way
            dirty_pages = tally.written_pages + tally.zero_pages
        self._note_round(dirty_pages, tally, started)

    def _note_round(self, dirty_pages: int, tally: Tally, started: float) -> None:
        self.written.add(tally)
        self.rounds.append(
            RoundReport(
                dirty_pages=dirty_pages,
                written_pages=tally.written_pages,
                gap_pages=tally.gap_pages,
                zero_pages=dirty_pages - tally.written_pages,
                seconds=time.perf_counter() - started,
            )
        )

    def _digest(self, pool: WorkerPool) -> None:
        started = time.perf_counter()
        if self.options.durability is Durability.FULL:
            with contextlib.suppress(OSError):  # a hint; the sync at the end is what counts
                linux.start_writeback(self.pending.fd)  # the device writes while the digests are computed
        self._run(pool, DIGEST, plan_shards(self.bitmaps.file, workers=self.choice.channels))
        self.digest_seconds = time.perf_counter() - started

    def _run(self, pool: WorkerPool, job: int, shards: Sequence[Shard]) -> Tally:
        through_page_cache = not self.direct or (self.known is not None and job == WRITE)
        nobody_waits = job == PRECOPY or not self.waits
        at_once = nobody_waits and self.options.durability is Durability.FULL

        def written(message: ShardDone, worker: int) -> None:
            shard = message.shard
            if job == WRITE:  # its pages are clean only now: those of a lost shard stay dirty
                self.bitmaps.dirty[shard.block].words[shard.first_word : shard.first_word + shard.words] = 0
            if self.trace:
                self.trace(traced(message, worker, self.layout, self.started))
            if through_page_cache and message.tally.bytes:
                self.writeback.wrote(*shard_span(self.layout, shard), message.tally.bytes, at_once=at_once)

        return run_job(
            pool,
            job,
            shards,
            phase=PHASES[job],
            page_size=self.layout.blocks[0].block.page_size,
            progress=self.progress,
            on_done=None if job == DIGEST else written,
        )
