"""Snapshots of a process that goes on writing: the file is its memory at T, page by page."""

from __future__ import annotations

import mmap
import os

import pytest
from support.captured_ram import Capture, Ram, discard
from support.channels import DeadlyChannel, LateChannel
from support.examples import some_of
from support.watched import PAGE, move, unmap, write

from parallel_fixedram.core.bitmap import Bits, Runs
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.shards import plan_shards
from parallel_fixedram.engine.capture.snapshot.pieces import USUAL, Pieces
from parallel_fixedram.engine.capture.snapshot.registration import register
from parallel_fixedram.engine.workers.pool import WorkerPool

KINDS = pytest.mark.parametrize("shared", [True, False], ids=["shared", "private"])


@KINDS
@pytest.mark.parametrize("pieces", [Pieces(noted_bytes=64 * PAGE), USUAL], ids=["a group", "groups"])
def test_a_snapshot_is_the_memory_at_one_instant(shared: bool, pieces: Pieces) -> None:
    """Written at random before and after T, what was never touched before, too; two blocks, half words."""
    with Ram(2000, 300, shared=shared) as ram:
        ram.fill(range(100, 1500))
        ram.fill(range(300), block=1)
        with Capture(ram, pieces=pieces) as capture:
            ram.begin_writing(range(2000))
            capture.protect()
            assert ram.halt()
            ram.fill([1700], value=2)  # one at least is written between the two
            capture.fix()
            ram.begin_writing(range(2000), seed=2)
            capture.work()
            figures = capture.finish()
            assert ram.halt()
        assert figures.void is None
        assert figures.noted_groups
        assert not ram.is_watched()


@KINDS
@pytest.mark.parametrize("pages", some_of([1, 15, 16, 17, 63, 64, 65], 3))
def test_blocks_of_any_number_of_pages(pages: int, shared: bool) -> None:
    """All of it is written between T and the first look of a worker, so all of it is spilled."""
    with Ram(pages, 65, shared=shared) as ram:
        ram.fill(range(0, pages, 2))
        ram.fill(range(65), block=1)
        with Capture(ram) as capture:
            capture.protect()
            capture.fix()
            ram.fill(range(pages), value=2)
            ram.fill(range(60, 65), block=1, value=2)
            capture.work()
            figures = capture.finish()
        assert figures.copied_groups == -(-pages // 64) + 2


@KINDS
def test_memory_that_was_never_touched_is_neither_read_nor_written(shared: bool) -> None:
    with Ram(700, shared=shared) as ram:
        before = ram.allocated_pages()
        with Capture(ram) as capture:
            capture.protect()
            capture.fix()
            ram.fill([5, 400], value=2)
            capture.work()
            figures = capture.finish()
        assert figures.copied_groups == 0
        assert not capture.file.memory[:].strip(bytes(1))
        assert ram.allocated_pages() == before + 2


def test_zero_pages_are_written_where_they_have_to_be_in_the_file() -> None:
    with Ram(130) as ram:
        ram.fill([3, 70])
        with Capture(ram, keep=True) as capture:
            capture.protect()
            capture.fix()
            ram.fill([3, 4], value=2)
            capture.work()
            capture.finish()
        assert capture.ledger.present[0].count() == 130


def test_a_ring_of_one_slot_is_enough() -> None:
    with Ram(640) as ram:
        ram.fill(range(640))
        with Capture(ram, slots=1) as capture:
            capture.protect()
            capture.fix()
            ram.fill(range(640), value=2)
            capture.work()
            assert capture.finish().copied_groups == 10


def test_what_the_guest_writes_between_copy_and_look_is_dropped_and_spilled() -> None:
    """With the writes of a device that takes its time, two windows of which are under way."""
    with Ram(512) as ram:
        ram.fill(range(512))

        class Late(LateChannel):
            def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
                ram.fill([20, 300], value=3)
                super().write_runs(offset, pages, runs, readable)

        with Capture(ram, wrap=Late, window_pages=128, staging_slots=2, gap=200) as capture:
            capture.protect()
            capture.fix()
            capture.work()
            capture.finish()


def test_a_gap_with_a_page_in_it_that_was_dropped_is_not_written_along() -> None:
    """The page is spilled before the worker writes its neighbours; a write over the gap would put an old copy there."""
    with Ram(192) as ram:
        ram.fill([0, 100, 191])
        with Capture(ram, gap=1000) as capture:
            capture.protect()
            capture.fix()
            ram.fill([100], value=2)
            capture.spilled()
            capture.work()
            capture.finish()


@pytest.mark.slow
@KINDS
def test_workers_that_die_on_the_way_cost_nothing(shared: bool) -> None:
    with Ram(2000, shared=shared) as ram:
        ram.fill(range(2000))
        deadly: list[DeadlyChannel] = []

        def wrap(inner: Channel) -> Channel:
            deadly.append(DeadlyChannel(inner, Capture.layout_of(ram).blocks[0].page_offset(1700), times=1))
            return deadly[0]

        with Capture(ram, wrap=wrap, window_pages=64) as capture:
            capture.protect()
            capture.fix()
            capture.snapshot.add_noted()
            with WorkerPool([capture.snapshot.job], 2) as pool:
                ram.begin_writing(range(1600))
                pool.run(0, plan_shards(capture.ledger.data, workers=2, target=256))
            capture.finish()
            assert ram.halt()
        assert deadly[0].died
        deadly[0].close()


@KINDS
def test_memory_discarded_before_t_is_zero_in_the_file(shared: bool) -> None:
    """Protection goes with it, so it is protected once more at T; what it was is not what is wanted."""
    with Ram(640, shared=shared) as ram:
        ram.fill(range(640))
        with Capture(ram) as capture:
            capture.protect()
            ram.watched.call(discard, ram.fd, 100, 200)
            ram.fill([150], value=5)
            capture.fix()
            ram.fill(range(640), value=2)
            capture.work()
            assert capture.finish().void is None
        assert not any(capture.truth[0][160 * PAGE : 300 * PAGE])


@KINDS
@pytest.mark.parametrize("how", ["discard", "unmap", "move"])
def test_memory_lost_after_t_makes_it_void_and_the_guest_runs_on(how: str, shared: bool) -> None:
    with Ram(640, shared=shared) as ram:
        ram.fill(range(640))
        with Capture(ram) as capture:
            capture.protect()
            capture.fix()
            if how == "discard":
                ram.watched.call(discard, ram.fd, 100, 200)
            else:
                ram.watched.call({"unmap": unmap, "move": move}[how], 128, 64)
            with pytest.raises(HostError, match=r"void: memory of the guest was|cannot read memory of process"):
                capture.work_and_end()  # a worker may find it gone before the handler has heard of it
            while capture.snapshot.cause() is None:
                os.sched_yield()  # the handler has read of it, and is about to say so
            assert str(capture.snapshot.cause()).startswith("the snapshot is void: memory of the guest was")
            ram.fill([0, 639], value=4)
        assert not ram.is_watched()


def test_an_event_that_waits_while_pages_are_protected_is_read_first() -> None:
    """Discards all the time, of memory of its own, and faults between them."""
    with Ram(8192) as ram:
        ram.fill(range(0, 8192, 3))
        with Capture(ram) as capture:
            ram.watched.begin(discard_and_write, ram.fd, 200)
            capture.protect()
            ram.watched.end()
            capture.fix()
            capture.work()
            assert capture.finish().void is None


def discard_and_write(memory: mmap.mmap, fd: int, times: int) -> None:
    for number in range(times):
        discard(memory, fd, number * 40, 3)
        write(memory, number * 40 + 1, 7)


@KINDS
def test_a_capture_that_is_given_up_leaves_nothing(shared: bool) -> None:
    with Ram(640, shared=shared) as ram:
        ram.fill(range(640))
        with Capture(ram) as capture:
            capture.protect()
            capture.fix()
            ram.begin_writing(range(640))
        assert ram.halt()
        assert not ram.is_watched()


def test_a_block_that_is_not_protected_is_captured_while_the_guest_stands_still() -> None:
    """As a small one is that lies on a file which takes no protection: nobody marks its groups but its worker."""
    with Ram(100, 65) as ram:
        ram.fill(range(100))
        ram.fill(range(65), block=1)
        ram.addresses[1] = None
        with Capture(ram) as capture:
            capture.protect()
            capture.fix()
            job = capture.snapshot.job
            job.open()
            for shard in plan_shards(capture.ledger.data, workers=1):
                if shard.block == 1:
                    job.run(shard)
            ram.fill(range(65), block=1, value=2)
            ram.fill(range(100), value=2)
            capture.work()
            capture.finish()


def test_a_block_that_takes_no_protection_and_is_too_large_to_be_copied_in_the_pause_is_refused() -> None:
    small, large = (RAMBlock(idstr=f"r{size}", used_length=size << 20) for size in (8, 9))
    with Ram(1) as ram:
        nowhere = 1 << 45
        assert register(ram.watched.uffd, [small], [nowhere]) == [None]
        with pytest.raises(HostError):
            register(ram.watched.uffd, [small, large], [None, nowhere])
