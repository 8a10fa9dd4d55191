"""What every PageSource, Channel, DirtySource and Machine has to do: one class a protocol, for subclasses to run.

A subclass ``TestSomething(PageSourceConformance)`` defines the fixture that makes the thing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.pictures import PAGE, allocated_pages, bits, content, memfd, picture_of

from parallel_fixedram.core.bitmap import Bits, PageBitmap, Runs
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.protocols import Channel, DirtySource, Machine, Pages, PageSource
from parallel_fixedram.core.ramblock import PageRange, check_unique
from parallel_fixedram.core.targets import recorded_page_bits
from parallel_fixedram.host.memory.copied_source import CopyingSource
from parallel_fixedram.host.memory.mapped_source import MappedSource

DRAWN = "A0-B--0C" + "-" * 56 + "z" + "-" * 192 + "Y"
"""258 pages: data, zeros and holes, over the edges of bitmap words and of windows."""


def covered(ranges: list[PageRange]) -> list[int]:
    """The pages of ranges, which have to be ascending and disjoint."""
    found: list[int] = []
    for each in ranges:
        assert each.count > 0
        assert not found or each.first > found[-1]
        found += range(each.first, each.end)
    return found


@dataclass
class Drawn:
    """A PageSource over memory that holds ``picture``."""

    source: PageSource
    picture: str
    fd: int
    """The file that holds it."""
    offset: int = 0
    """Where it starts in the file."""
    exact: bool = True
    """Whether the source knows about holes to the page."""


def data_map(drawn: Drawn) -> PageBitmap:
    """What the source says may hold something, as the engine keeps it."""
    data = PageBitmap(len(drawn.picture))
    for each in drawn.source.data_ranges(PageRange(0, data.pages)):
        data.set_range(each)
    return data


def noting_copies(source: PageSource, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pages that a source copies from now on, in the order in which it does; none where it maps them."""
    copied: list[int] = []
    if isinstance(source, CopyingSource):
        real = source._read

        def read(position: int, into: memoryview) -> int:
            got = real(position, into)
            copied.extend(range(position // PAGE, (position + got) // PAGE))
            return got

        monkeypatch.setattr(source, "_read", read)
    return copied


class PageSourceConformance:
    """Needs a fixture ``drawn``: a Drawn whose source is not open yet."""

    def test_every_page_reads_as_what_memory_holds(self, drawn: Drawn) -> None:
        drawn.source.open()
        for each in drawn.source.data_ranges(PageRange(0, len(drawn.picture))):
            for first in range(each.first, each.end, 256):
                count = min(256, each.end - first)
                pages = drawn.source.pages(first, count)
                assert pages.shape == (count, PAGE // 8)
                assert pages.tobytes() == content(drawn.picture[first : first + count])

    def test_its_pages_cannot_be_written_and_begin_at_a_page(self, drawn: Drawn) -> None:
        drawn.source.open()
        pages = drawn.source.pages(0, 2)
        assert not pages.flags.writeable
        assert pages.flags.c_contiguous
        assert pages.ctypes.data % mmap.PAGESIZE == 0

    def test_no_page_that_holds_something_is_outside_the_data_ranges(self, drawn: Drawn) -> None:
        found = covered(drawn.source.data_ranges(PageRange(0, len(drawn.picture))))
        assert {i for i, letter in enumerate(drawn.picture) if letter not in "-0"} <= set(found)
        assert drawn.source.tells_holes == drawn.exact
        if drawn.exact:
            assert found == [i for i, letter in enumerate(drawn.picture) if letter != "-"]

    @pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 1), (1, 2), (3, 61), (63, 2), (65, 193), (257, 1)])
    def test_data_ranges_stay_within_what_was_asked(self, drawn: Drawn, first: int, count: int) -> None:
        found = covered(drawn.source.data_ranges(PageRange(first, count)))
        whole = covered(drawn.source.data_ranges(PageRange(0, len(drawn.picture))))
        assert found == [index for index in whole if first <= index < first + count]

    def test_data_ranges_can_be_asked_before_open_and_after_a_page_was_touched(self, drawn: Drawn) -> None:
        drawn.source.data_ranges(PageRange(0, len(drawn.picture)))
        os.pwrite(drawn.fd, b"x", drawn.offset + 100 * PAGE)
        assert 100 in covered(drawn.source.data_ranges(PageRange(66, 100)))

    def test_a_page_that_was_touched_since_has_grown(self, drawn: Drawn) -> None:
        data = data_map(drawn)
        assert drawn.exact or data.count() == data.pages
        if drawn.exact:
            assert set(covered(drawn.source.newly_touched(data))) <= set(covered(data.ranges()))
            for index in (1, 3, 6, 100, 256):
                os.pwrite(drawn.fd, b"x", drawn.offset + index * PAGE)
            found = set(covered(drawn.source.newly_touched(data)))
            assert found - set(covered(data.ranges())) == {1, 6, 100, 256} - set(covered(data.ranges()))
        data.set_all()
        assert drawn.source.newly_touched(data) == []

    def test_asking_and_reading_data_takes_no_memory(self, drawn: Drawn) -> None:
        before = allocated_pages(drawn.fd)
        drawn.source.open()
        for each in drawn.source.data_ranges(PageRange(0, len(drawn.picture))):
            drawn.source.pages(each.first, each.count).sum()
        drawn.source.newly_touched(data_map(drawn))
        assert allocated_pages(drawn.fd) == before

    def test_it_reads_memory_as_it_is_now(self, drawn: Drawn) -> None:
        drawn.source.open()
        assert picture_of(drawn.source.pages(0, 1).tobytes()) == "A"
        os.pwrite(drawn.fd, content("Q"), drawn.offset)
        assert picture_of(drawn.source.pages(0, 1).tobytes()) == "Q"

    @pytest.mark.parametrize("wanted", [[0], [3], [0, 3, 8], [7, 8, 65, 257], [*range(258)], []])
    def test_pages_that_are_wanted_are_there_and_a_copy_is_made_of_no_other(
        self, drawn: Drawn, wanted: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn.source.open()
        copied = noting_copies(drawn.source, monkeypatch)
        looked_at = np.zeros(len(DRAWN), np.uint8)
        looked_at[wanted] = 1
        before = allocated_pages(drawn.fd)
        pages = drawn.source.pages(0, len(DRAWN), looked_at)
        assert pages.shape == (len(DRAWN), PAGE // 8)
        assert pages.ctypes.data % mmap.PAGESIZE == 0
        assert not pages.flags.writeable
        for index in wanted:
            if DRAWN[index] != "-":
                assert pages[index].tobytes() == content(DRAWN[index])
        assert copied == ([] if drawn.source.views_stay_valid else wanted)
        assert allocated_pages(drawn.fd) == before

    def test_pages_in_the_middle_are_wanted_by_their_place_in_what_is_asked_for(
        self, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn.source.open()
        copied = noting_copies(drawn.source, monkeypatch)
        pages = drawn.source.pages(2, 6, np.array([0, 1, 0, 0, 0, 1], np.uint8))
        assert picture_of(pages[1].tobytes()) + picture_of(pages[5].tobytes()) == "BC"
        assert copied == ([] if drawn.source.views_stay_valid else [3, 7])

    def test_what_lasts_is_the_same_after_the_next_call(self, drawn: Drawn) -> None:
        drawn.source.open()
        first = drawn.source.pages(0, 1)
        drawn.source.pages(3, 1)
        assert picture_of(first.tobytes()) == ("A" if drawn.source.views_stay_valid else "B")

    def test_a_fork_opens_it_for_itself(self, drawn: Drawn) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                drawn.source.open()
                status = int(picture_of(drawn.source.pages(0, 1).tobytes()) != "A")
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0

    def test_closing_more_than_once_does_no_harm(self, drawn: Drawn) -> None:
        drawn.source.open()
        drawn.source.close()
        drawn.source.close()


@dataclass
class OpenChannel:
    """A Channel of ``size`` bytes, all zero, and a way to see them that does not go through it."""

    channel: Channel
    size: int
    look: Callable[[], bytes]


def aligned(data: bytes) -> memoryview:
    """The bytes in memory that starts at a page, as O_DIRECT wants them."""
    buffer = memoryview(mmap.mmap(-1, len(data)))
    buffer[:] = data
    return buffer


@contextmanager
def shared_ram(picture: str) -> Iterator[tuple[int, Pages, Bits]]:
    """Memory as a guest has it: its descriptor, its pages, and which of them may be read: those that are no holes."""
    fd = memfd(picture)
    source = MappedSource(fd, length=len(picture) * PAGE)
    source.open()
    yield fd, source.pages(0, len(picture)), np.array(bits(picture), np.uint8)
    source.close()
    os.close(fd)


def as_runs(runs: Sequence[tuple[int, int]]) -> Runs:
    """Runs as channels take them."""
    return np.array(runs, np.int64).reshape(-1, 2)


class ChannelConformance:
    """Needs a fixture ``opened``: an OpenChannel of at least 8 pages; transfers here are whole, aligned pages."""

    def test_what_is_written_can_be_read_at_the_same_place(self, opened: OpenChannel) -> None:
        opened.channel.write(2 * PAGE, aligned(content("AB")))
        opened.channel.write(0, aligned(content("Z")))
        into = aligned(bytes(5 * PAGE))
        opened.channel.read(0, into)
        assert picture_of(into.tobytes()) == "Z0AB0"
        opened.channel.sync()
        assert picture_of(opened.look()[: 5 * PAGE]) == "Z0AB0"

    def test_writing_the_same_page_twice_leaves_the_second_contents(self, opened: OpenChannel) -> None:
        opened.channel.write(PAGE, aligned(content("A")))
        opened.channel.write(PAGE, aligned(content("B")))
        assert picture_of(opened.look()[: 3 * PAGE]) == "0B0"

    def test_the_view_that_is_written_may_be_read_only(self, opened: OpenChannel) -> None:
        opened.channel.write(0, aligned(content("AB")).toreadonly())
        assert picture_of(opened.look()[: 2 * PAGE]) == "AB"

    def test_a_punched_range_reads_as_zeros_and_its_neighbours_stay(self, opened: OpenChannel) -> None:
        opened.channel.write(0, aligned(content("ABCDEFGH")))
        opened.channel.punch(2 * PAGE, 3 * PAGE)
        opened.channel.punch(7 * PAGE, PAGE)
        into = aligned(bytes(8 * PAGE))
        opened.channel.read(0, into)
        assert picture_of(into.tobytes()) == "AB000FG0"
        assert len(opened.look()) == opened.size

    def test_punching_what_is_a_hole_already_does_no_harm(self, opened: OpenChannel) -> None:
        opened.channel.punch(0, 4 * PAGE)
        assert picture_of(opened.look()[: 4 * PAGE]) == "0000"

    @pytest.mark.parametrize(
        ("runs", "expected"),
        [
            ([], "00000000"),
            ([(0, 1)], "A0000000"),
            ([(0, 8)], "AB00C00d"),
            ([(1, 1), (4, 4)], "0B00C00d"),
            ([(0, 2), (3, 1), (7, 1)], "AB00000d"),
            ([(1, 3), (5, 2)], "0B000000"),
            ([(2, 1)], "00000000"),
        ],
    )
    def test_runs_are_written_to_their_places_and_what_may_not_be_read_as_zeros(
        self, opened: OpenChannel, runs: list[tuple[int, int]], expected: str
    ) -> None:
        """The pages that may not be read are holes in memory, and stay such: nobody has looked at them."""
        with shared_ram("AB-0C--d") as (fd, pages, readable):
            before = allocated_pages(fd)
            opened.channel.write_runs(0, pages, as_runs(runs), readable)
            opened.channel.settle()
            assert allocated_pages(fd) == before
        assert picture_of(opened.look()[: 8 * PAGE]) == expected

    def test_zeros_are_written_over_what_was_there(self, opened: OpenChannel) -> None:
        opened.channel.write(0, aligned(content("XXXXXXXX")))
        with shared_ram("A--B0-") as (_, pages, readable):
            opened.channel.write_runs(PAGE, pages, as_runs([(0, 2), (3, 3)]), readable)
            opened.channel.settle()
        assert picture_of(opened.look()[: 8 * PAGE]) == "XA0XB00X"

    def test_many_runs_may_be_begun_before_they_are_settled(self, opened: OpenChannel) -> None:
        with shared_ram("ABCDEFGH") as (_, pages, readable):
            for first in (0, 4, 2, 6):
                opened.channel.write_runs(first * PAGE, pages[first : first + 2], as_runs([(1, 1)]), readable[:2])
            opened.channel.settle()
            assert picture_of(opened.look()[: 8 * PAGE]) == "0B0D0F0H"
            opened.channel.write_runs(0, pages, as_runs([(0, 1), (7, 1)]), readable)
            opened.channel.settle()
        assert picture_of(opened.look()[: 8 * PAGE]) == "AB0D0F0H"

    def test_settling_when_nothing_is_in_flight_does_nothing(self, opened: OpenChannel) -> None:
        opened.channel.settle()
        with shared_ram("A") as (_, pages, readable):
            opened.channel.write_runs(0, pages, as_runs([(0, 1)]), readable)
        opened.channel.settle()
        opened.channel.settle()
        assert picture_of(opened.look()[: 2 * PAGE]) == "A0"

    def test_what_was_settled_can_be_punched_and_written_again(self, opened: OpenChannel) -> None:
        with shared_ram("ABCD") as (_, pages, readable):
            opened.channel.write_runs(0, pages, as_runs([(0, 4)]), readable)
            opened.channel.settle()
            opened.channel.punch(PAGE, 2 * PAGE)
            assert picture_of(opened.look()[: 4 * PAGE]) == "A00D"
            opened.channel.write_runs(0, pages, as_runs([(2, 1)]), readable)
            opened.channel.settle()
        assert picture_of(opened.look()[: 4 * PAGE]) == "A0CD"

    def test_two_processes_may_write_runs_at_once(self, opened: OpenChannel) -> None:
        children = []
        with shared_ram("ABCDEFGH") as (_, pages, readable):
            for first in (0, 4):
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        for page in range(first, first + 4):
                            opened.channel.write_runs(0, pages, as_runs([(page, 1)]), readable)
                        opened.channel.settle()
                        status = 0
                    finally:
                        os._exit(status)
                children.append(pid)
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
        assert picture_of(opened.look()[: 8 * PAGE]) == "ABCDEFGH"

    def test_reading_past_the_end_is_an_error_of_the_file(self, opened: OpenChannel) -> None:
        with pytest.raises(FormatError):
            opened.channel.read(opened.size - PAGE, aligned(bytes(2 * PAGE)))

    def test_writing_nothing_does_nothing(self, opened: OpenChannel) -> None:
        opened.channel.write(0, memoryview(b""))
        assert not any(opened.look())

    def test_two_processes_may_use_it_at_once(self, opened: OpenChannel) -> None:
        children = []
        for index, letter in enumerate("ABCD"):
            pid = os.fork()
            if pid == 0:
                try:
                    opened.channel.write(2 * index * PAGE, aligned(content(letter * 2)))
                finally:
                    os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        assert picture_of(opened.look()[: 8 * PAGE]) == "AABBCCDD"


@dataclass
class Dirtying:
    """A DirtySource for blocks of these many pages, and the guest's side of it."""

    source: DirtySource
    pages: list[int]
    touch: Callable[[int, int], None]
    """``touch(block, page)`` writes a page."""


class DirtySourceConformance:
    """Needs a fixture ``dirtying``: a Dirtying whose source has nothing to report that matters."""

    def bitmaps(self, dirtying: Dirtying) -> list[PageBitmap]:
        return [PageBitmap(pages) for pages in dirtying.pages]

    def test_every_page_written_since_the_last_sync_is_reported(self, dirtying: Dirtying) -> None:
        dirtying.source.sync(self.bitmaps(dirtying))
        written = [(block, index) for block, pages in enumerate(dirtying.pages) for index in {0, pages // 2, pages - 1}]
        for block, index in written:
            dirtying.touch(block, index)
        found = self.bitmaps(dirtying)
        dirtying.source.sync(found)
        assert all(found[block].test(index) for block, index in written)

    def test_it_returns_how_many_bits_went_from_0_to_1(self, dirtying: Dirtying) -> None:
        found = self.bitmaps(dirtying)
        found[0].set_range(PageRange(0, 1))
        dirtying.touch(0, 0)
        dirtying.touch(0, dirtying.pages[0] - 1)
        before = sum(bitmap.count() for bitmap in found)
        added = dirtying.source.sync(found)
        assert added == sum(bitmap.count() for bitmap in found) - before

    def test_it_clears_no_bit_and_sets_none_after_the_last_page(self, dirtying: Dirtying) -> None:
        found = self.bitmaps(dirtying)
        for bitmap in found:
            bitmap.set_all()
        assert dirtying.source.sync(found) == 0
        assert [bitmap.count() for bitmap in found] == dirtying.pages
        assert all(np.array_equal(b.words, PageBitmap.from_bytes(b.to_bytes(), b.pages).words) for b in found)

    def test_a_page_written_again_is_reported_again(self, dirtying: Dirtying) -> None:
        for _ in range(3):
            dirtying.touch(0, 0)
            found = self.bitmaps(dirtying)
            dirtying.source.sync(found)
            assert found[0].test(0)


class MachineConformance:
    """Needs a fixture ``machine``, standing still; and ``run(machine)`` where it can run."""

    can_run = True

    def run(self, machine: Machine) -> None:
        """Let it run."""

    def test_a_file_can_record_its_target(self, machine: Machine) -> None:
        assert machine.target == "" or recorded_page_bits(machine.target) in (None, 12)
        assert machine.target.isascii()

    def test_it_has_a_name_that_fits_a_file(self, machine: Machine) -> None:
        assert 0 < len(machine.name) <= 255
        assert machine.name.isascii()

    def test_its_blocks_can_be_saved_and_stay_the_same(self, machine: Machine) -> None:
        blocks = [each.block for each in machine.guest_blocks()]
        check_unique(blocks)
        assert [each.block for each in machine.guest_blocks()] == blocks

    def test_every_page_of_every_block_can_be_read(self, machine: Machine) -> None:
        for each in machine.guest_blocks():
            each.source.open()
            for found in each.source.data_ranges(PageRange(0, each.block.pages)):
                assert found.end <= each.block.pages
                assert len(each.source.pages(found.first, min(found.count, 4))) == min(found.count, 4)
            each.source.close()

    def test_its_device_sections_are_bytes_while_it_is_paused(self, machine: Machine) -> None:
        machine.pause()
        assert isinstance(machine.device_state(), bytes)
        machine.resume()

    def test_a_file_that_it_does_not_lie_in_may_be_written(self, machine: Machine, tmp_path: Path) -> None:
        assert not machine.holds(str(tmp_path / "new"))
        (tmp_path / "old").write_bytes(b"old")
        assert not machine.holds(str(tmp_path / "old"))

    def test_one_that_stood_still_is_left_standing(self, machine: Machine) -> None:
        assert machine.is_running() is False
        assert machine.pause() is False
        machine.resume()
        machine.resume()
        assert machine.pause() is False

    def test_one_that_runs_is_paused_and_goes_on(self, machine: Machine) -> None:
        if not self.can_run:
            pytest.skip("this machine never runs")
        self.run(machine)
        assert machine.is_running() is True
        assert machine.pause() is True
        machine.resume()
        assert machine.is_running() is True
        machine.resume()
        assert machine.pause() is True
        machine.resume()

    def test_left_alone_it_is_one_instant_of_the_same_machine(self, machine: Machine) -> None:
        machine.get_ready()
        machine.pause()
        assert machine.resume() is None
        assert machine.look_again() is False

    def test_closing_more_than_once_does_no_harm(self, machine: Machine) -> None:
        machine.close()
        machine.close()
