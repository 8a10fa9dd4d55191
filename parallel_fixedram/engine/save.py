"""Save: from a machine's RAM to a published file.

::

    file sized, data map asked, space reserved, workers up, RAM mapped     the guest runs
    [rounds: sync dirty bitmap -> plan -> shards -> acknowledged]          the guest runs  (live)
    rehearsal: page cache filled, data map asked again, firmware written   the guest runs
    pause -> last round and device state at the same time -> resume        the guest stands still
    digests, bitmaps, heads, tail, trailer, clone stream -> sync, publish  the guest runs

Nothing that can be done before or after is done while the guest stands still. The file gets its name only when every
shard is acknowledged and everything is on stable storage.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import FormatError, MachineError, RequestError
from parallel_fixedram.core.layout import FileLayout
from parallel_fixedram.core.plan import Shard, plan_shards
from parallel_fixedram.core.protocols import DirtySource, Machine
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.report import (
    RoundReport,
    SaveBytes,
    SaveReport,
    SaveSeconds,
    WorkerReport,
)
from parallel_fixedram.core.trailer import TrailerLayout
from parallel_fixedram.engine.bitmaps import SharedBitmaps, shared_words
from parallel_fixedram.engine.clone_stream import CloneStream
from parallel_fixedram.engine.digest import DigestJob, write_trailer
from parallel_fixedram.engine.direct_io import open_page_channel
from parallel_fixedram.engine.image import block_report
from parallel_fixedram.engine.messages import Tally
from parallel_fixedram.engine.pause import Pause
from parallel_fixedram.engine.pool import WorkerPool
from parallel_fixedram.engine.progress import Progress, run_job
from parallel_fixedram.engine.reserve import Reservation
from parallel_fixedram.engine.save_options import Durability, SaveOptions
from parallel_fixedram.engine.window import WINDOW_PAGES
from parallel_fixedram.engine.write import WriteJob
from parallel_fixedram.host import linux
from parallel_fixedram.host.facts import host_facts
from parallel_fixedram.host.page_cache import dirty_room
from parallel_fixedram.host.publish import PendingFile

GAP_PAGES_BUFFERED = 0
"""A buffered call is cheap, and a gap that is written takes space that a hole does not."""
GAP_PAGES_DIRECT = 16
"""Each direct call waits for the device: at 30 % random dirty pages joining over 16 is about ten times faster."""

WINDOW_PAGES_DIRECT = 2 * WINDOW_PAGES
"""A direct write of 2 MiB keeps two requests of scattered pages in flight: about 5 % faster than 1 MiB."""

SMALL_ROUND_PAGES = 1024
"""A live save stops the guest when fewer pages than this are dirty: they take about a millisecond."""

_WRITE, _DIGEST = 0, 1
PHASES = ("write", "digest")
"""What ``progress`` calls the phases, in this order."""


def save(
    machine: Machine,
    path: str,
    options: SaveOptions,
    *,
    dirty: DirtySource | None = None,
    progress: Progress | None = None,
) -> SaveReport:
    """Save a machine's RAM and device state to ``path``.

    Args:
        machine: what to save.
        path: final name of the file.
        options: how.
        dirty: says which pages were written, everything since before this call included; a live save needs it.
        progress: called as shards are acknowledged.

    Raises:
        FixedRamError: nothing was published, the machine goes on, and nothing is left behind; except for
            DurabilityError, where the file is published.
    """
    if options.max_rounds > 1 and dirty is None:
        raise RequestError("a live save needs to know which pages were written, and this RAM has no dirty log")
    started = time.perf_counter()
    with PendingFile(path, overwrite=options.overwrite) as pending:
        run = _Save(machine, pending, options, dirty, progress)
        run.copy()
        run.finish()
    return run.report(time.perf_counter() - started)


class _Save:
    """One save, its phases in order."""

    def __init__(
        self,
        machine: Machine,
        pending: PendingFile,
        options: SaveOptions,
        dirty: DirtySource | None,
        progress: Progress | None,
    ) -> None:
        self.started = time.perf_counter()
        self.machine = machine
        self.pending = pending
        self.options = options
        self.dirty = dirty
        self.live = options.max_rounds > 1
        self.progress = progress
        self.guest_blocks = machine.guest_blocks()
        blocks = [each.block for each in self.guest_blocks]
        self.layout = FileLayout.plan(machine.name, blocks, options.offset)
        self.bitmaps = SharedBitmaps(blocks)
        self.tables = shared_words(len(blocks))
        self.space = Reservation(pending, self.layout.blocks)
        self.notes: list[str] = []
        self.rounds: list[RoundReport] = []
        self.written = Tally()
        self.workers: tuple[WorkerReport, ...] = ()
        self.pause = Pause(machine)
        self.prepare_seconds = self.last_round_seconds = self.digest_seconds = self.sync_seconds = (
            self.publish_seconds
        ) = 0.0
        self.tail = b""
        self.clone: CloneStream | None = None
        self.trailer: TrailerLayout | None = None
        self.direct = False
        self.file_bytes = self.allocated_bytes = 0

    def copy(self) -> None:
        """Everything that needs workers: pages into the file, then their digests."""
        if self.layout.base:
            self.pending.copy_prefix(self.layout.base)
        self.pending.set_size(self.layout.ram_end)
        self._map_data()
        waits = self.machine.prepare()
        opened = open_page_channel(
            self.pending,
            self.options.direct_io,
            live=self.live,
            waits=waits,
            data=self.bitmaps.data,
            page_size=self.layout.blocks[0].block.page_size,
        )
        pages, self.direct = opened.channel, opened.direct
        self.notes += [opened.note] if opened.note else []
        self._reserve()
        sources = [each.source for each in self.guest_blocks]
        gap = self.options.max_gap_pages
        if gap is None:
            gap = GAP_PAGES_DIRECT if self.direct else GAP_PAGES_BUFFERED
        write = WriteJob(
            self.layout.blocks,
            sources,
            self.bitmaps,
            pages,
            digests=self.pending.channel,
            tables=self.tables,
            max_gap_pages=gap,
            window_pages=WINDOW_PAGES_DIRECT if self.direct else WINDOW_PAGES,
            keep_zero_pages=[each.keeps_zero_pages for each in self.guest_blocks],
            hurry=waits and not self.live,
        )
        digest = DigestJob(
            self.layout.blocks, self.bitmaps.file, self.tables, pages=pages, digests=self.pending.channel
        )
        with WorkerPool((write, digest), self.options.channels, stall_seconds=self.options.stall_seconds) as pool:
            self._rounds(pool)
            self.workers = tuple(
                WorkerReport(shards=w.shards, written_pages=w.tally.written_pages, seconds=w.seconds)
                for w in pool.workers
            )
            if self.trailer is None:
                self._end_stream()
                self._digest(pool)

    def finish(self) -> None:
        """Heads, bitmaps, tail and trailer; then sync and publish."""
        channel = self.pending.channel
        self.space.give_back(self.bitmaps.file)
        for offset, data in self.layout.head_pieces():
            channel.write(offset, memoryview(data))
        for saved, present in zip(self.layout.blocks, self.bitmaps.file, strict=True):
            channel.write(saved.header.bitmap_offset, memoryview(present.to_bytes()))
        channel.write(self.layout.ram_end, memoryview(self.tail))
        assert self.trailer is not None, "copy() comes first"
        if self.clone:
            self.clone.write(channel, channel, self.trailer.clone_offset)
        write_trailer(channel, self.trailer, self.layout.blocks)
        started = time.perf_counter()
        if self.options.durability is Durability.FULL:
            channel.sync()
        synced = time.perf_counter()
        status = channel.stat()
        self.file_bytes, self.allocated_bytes = status.st_size, status.st_blocks * 512
        self.pending.publish()
        if self.options.durability is Durability.FULL:
            self.pending.sync_folder()
        self.sync_seconds = synced - started
        self.publish_seconds = time.perf_counter() - synced

    def report(self, total_seconds: float) -> SaveReport:
        """What happened."""
        channels, waited = self.options.channels, self.pause.was_running
        return SaveReport(
            file=self.pending.path,
            channels=channels,
            direct_io=self.direct,
            capabilities=dict(self.options.capabilities),
            blocks=tuple(
                block_report(saved, present.count())
                for saved, present in zip(self.layout.blocks, self.bitmaps.file, strict=True)
            ),
            rounds=tuple(self.rounds),
            seconds=SaveSeconds(
                total=total_seconds,
                prepare=self.prepare_seconds,
                pause=self.pause.seconds if waited else 0.0,
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
            ),
            workers=self.workers,
            host=host_facts(self.pending.path),
            notes=tuple(self.notes),
        )

    def _map_data(self) -> None:
        """Learn which pages may hold something."""
        for each, data in zip(self.guest_blocks, self.bitmaps.data, strict=True):
            whole = PageRange(0, each.block.pages)
            for found in [whole] if each.keeps_zero_pages else each.source.data_ranges(whole):
                data.set_range(found)

    def _map_grown(self) -> None:
        """Learn which pages were touched since then; the guest waits."""
        for each, data in zip(self.guest_blocks, self.bitmaps.data, strict=True):
            for found in each.source.grown(data):
                data.set_range(found)

    def _reserve(self) -> None:
        """Reserve space for the data; not where the source cannot tell data from holes, which may be nearly all."""
        for number, (each, data) in enumerate(zip(self.guest_blocks, self.bitmaps.data, strict=True)):
            if each.source.tells_holes:
                self.space.take(number, data)

    def _rounds(self, pool: WorkerPool) -> None:
        for bitmap in self.bitmaps.dirty:
            bitmap.set_all()
        before = 2 * sum(bitmap.pages for bitmap in self.bitmaps.dirty)
        for number in range(self.options.max_rounds - 1):
            self._sync_dirty()
            now = sum(bitmap.count() for bitmap in self.bitmaps.dirty)
            if now < SMALL_ROUND_PAGES or now > before // 2:
                break  # another round would not make the stopped one noticeably shorter
            self._round(pool, number)
            before = now
        self._rehearse(pool)
        self.prepare_seconds = time.perf_counter() - self.started
        with self.pause as pause:
            self._sync_dirty()
            pause.begin_device_state()
            if self.direct and not pause.was_running and not self.rounds:
                # nobody waits, and digests are written along with the pages: the device could only be read slowly
                self._end_stream()
            if self.dirty is None:  # also where nothing ran: it may have stopped by itself only now
                self._map_grown()
            started = time.perf_counter()
            self._round(pool, len(self.rounds))
            self.last_round_seconds = time.perf_counter() - started
            pause.device_state()  # it has to be there before the machine goes on

    def _rehearse(self, pool: WorkerPool) -> None:
        """Go once through what the last round does, while nobody waits.

        Memory that coordinator and workers touch for the first time after the fork is copied page by page: that takes
        longer than a small round itself. Firmware is written, and again in the last round.
        """
        if self.pause.prepare() and not self.direct and not self.live:  # a live save has written most of it by now
            self.space.bring_into_page_cache(dirty_room())
        if self.dirty is None:
            self._map_grown()
        firmware = [PageBitmap(dirty.pages) for dirty in self.bitmaps.dirty]
        for each, bitmap in zip(self.guest_blocks, firmware, strict=True):
            if each.keeps_zero_pages:
                bitmap.set_all()
        for dirty, some in zip(self.bitmaps.dirty, firmware, strict=True):
            dirty.words |= some.words
        self._run(pool, _WRITE, plan_shards(firmware, workers=self.options.channels))
        for dirty, some in zip(self.bitmaps.dirty, firmware, strict=True):
            dirty.words |= some.words
        self.pause.prepare()

    def _end_stream(self) -> None:
        """Put together and lay out what follows the last page: device sections, trailer, clone stream."""
        state = self.pause.device_state()
        try:
            self.tail = self.layout.tail(state)
        except FormatError as error:
            raise MachineError(f"the device state is not what QEMU writes: {error.message}") from error
        small = [number for number, each in enumerate(self.guest_blocks) if not each.main]
        if state and small:
            self.clone = CloneStream(
                machine=self.layout.machine,
                blocks=[self.layout.blocks[number] for number in small],
                present=[self.bitmaps.file[number] for number in small],
                device_sections=state,
            )
        self.trailer = TrailerLayout.plan(
            base=self.layout.base,
            stream_end=self.layout.ram_end + len(self.tail),
            blocks=[saved.block for saved in self.layout.blocks],
            clone_end=self.clone.end if self.clone else None,
        )
        self.pending.set_size(self.trailer.file_length)
        self.tables[:] = self.trailer.tables  # tells the workers that digests are wanted, and where they go

    def _sync_dirty(self) -> None:
        """Add what was written since the last time; the data map grows by what of it is no hole any more."""
        if self.dirty is None:
            return
        touched = [PageBitmap(bitmap.pages) for bitmap in self.bitmaps.dirty]
        self.dirty.sync(touched)
        for each, new, dirty, data in zip(
            self.guest_blocks, touched, self.bitmaps.dirty, self.bitmaps.data, strict=True
        ):
            dirty.words |= new.words
            new.words &= ~data.words
            for pages in new.ranges() if new.words.any() else ():  # a coarse log also names pages never touched
                for found in each.source.data_ranges(pages):
                    data.set_range(found)

    def _round(self, pool: WorkerPool, number: int) -> None:
        started = time.perf_counter()
        dirty_pages = sum(bitmap.count() for bitmap in self.bitmaps.dirty)
        for dirty, data in zip(self.bitmaps.dirty, self.bitmaps.data, strict=True):
            dirty.words &= data.words  # a page outside of data is zero and always was: nothing to do
        tally = self._run(
            pool, _WRITE, plan_shards(self.bitmaps.dirty, workers=self.options.channels, round_number=number)
        )
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
        self._run(pool, _DIGEST, plan_shards(self.bitmaps.file, workers=self.options.channels))
        self.digest_seconds = time.perf_counter() - started

    def _run(self, pool: WorkerPool, job: int, shards: Sequence[Shard]) -> Tally:
        def clean(shard: Shard) -> None:  # only when it is acknowledged: a lost shard's pages stay dirty
            self.bitmaps.dirty[shard.block].words[shard.first_word : shard.first_word + shard.words] = 0

        return run_job(
            pool,
            job,
            shards,
            phase=PHASES[job],
            page_size=self.layout.blocks[0].block.page_size,
            progress=self.progress,
            on_done=clean if job == _WRITE else None,
        )
