"""The worker's part of a save, checked against a twin that goes page by page."""

import os
from dataclasses import dataclass

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from support.channels import Event, LateChannel, MemoryChannel, RecordingChannel
from support.examples import at_most
from support.pictures import PAGE, allocated_pages, bits, content, mark, marked, memfd, picture_of
from support.sources import WatchedSource

from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard, plan_shards
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.pages.window import merge_runs
from parallel_fixedram.engine.pages.writer import HOLE_PAGES, PageWriter
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.memory.copied_source import CopiedSource
from parallel_fixedram.host.memory.mapped_source import MappedSource


@dataclass
class Outcome:
    """What a RoundJob did to a file of one block."""

    pages: str
    """Picture of the page area."""
    present: str
    """The file bitmap."""
    writes: list[tuple[int, int]]
    """First page and number of pages of each write."""
    punches: list[tuple[int, int]]
    tally: Tally
    allocated: int
    """Pages of RAM that were allocated by it."""
    digests: list[int]
    """One a page, 0 where there is none, ."""
    order: str
    """``W`` for each write and ``P`` for each punch, as they came."""


def run_job(
    ram: str,
    dirty: str | None = None,
    *,
    before: str | None = None,
    gap: int = 0,
    round_number: int = 0,
    workers: int = 1,
    shards: list[Shard] | None = None,
    late: bool = False,
    copied: bool = False,
    window: int = WINDOW_PAGES,
) -> Outcome:
    """Run RoundJob; ``before`` draws the file: ``-`` absent, ``!`` absent with stale bytes.

    ``late`` is a channel that looks at pages only when it has to settle, ``copied`` a source whose next pages take the
    place of these.
    """
    dirty, before = dirty or "x" * len(ram), before or "-" * len(ram)
    fd = memfd(ram)
    block = RAMBlock(idstr="ram", used_length=len(ram) * PAGE)
    layout = FileLayout.plan("test", [block])
    start = layout.blocks[0].header.pages_offset
    memory = MemoryChannel(layout.ram_end)
    memory.memory[start:] = content(before.replace("!", "S"))
    channel = RecordingChannel(memory, layout.ram_end)
    latecomer = LateChannel(channel)
    inner = CopiedSource(fd) if copied else MappedSource(fd, length=block.used_length)
    source = WatchedSource(inner, bits(ram))
    ledger = Ledger([block])
    mark(ledger.dirty[0], dirty)
    mark(ledger.data[0], ram)
    mark(ledger.present[0], before.replace("!", "-"))
    ledger.dirty[0].words &= ledger.data[0].words
    taken = allocated_pages(fd)
    writer = PageWriter(
        [GuestBlock(block=block, source=source)],
        layout.blocks,
        ledger,
        latecomer if late else channel,
        max_gap_pages=gap,
    )
    job = RoundJob(ledger, writer, window_pages=window)
    job.open()
    tally = Tally()
    for shard in plan_shards(ledger.dirty, workers=workers, round_number=round_number) if shards is None else shards:
        tally.add(job.run(shard))
        assert latecomer.begun == 0, "a shard is done when everything it has begun is written"
    events = channel.events()
    outcome = Outcome(
        picture_of(memory.memory[start:]),
        marked(ledger.present[0]),
        [place(event, start) for event in events if event.kind == "W"],
        [place(event, start) for event in events if event.kind == "P"],
        tally,
        allocated_pages(fd) - taken,
        np.where(ledger.present[0].bits(0, len(ram)), ledger.digests[0], 0).tolist(),
        "".join(event.kind for event in events),
    )
    assert not source.wrong, "RAM was read that was never touched"
    assert not any(memory.memory[:start])
    assert not [event for event in events if event.kind == "!"]
    channel.close()
    source.close()
    os.close(fd)
    return outcome


def place(event: Event, start: int) -> tuple[int, int]:
    assert (event.offset - start) % PAGE == 0 == event.length % PAGE
    return (event.offset - start) // PAGE, event.length // PAGE


def twin(ram: str, dirty: str, before: str) -> tuple[str, str]:
    """Pages and file bitmap as a loop over the pages makes them."""
    pages, present = list(before.replace("-", "0").replace("!", "S")), list(before.replace("!", "-"))
    for index, letter in enumerate(ram):
        if dirty[index] != "-" and letter != "-":
            pages[index] = letter
            present[index] = "-" if letter == "0" else "x"
    return "".join(pages), "".join("-" if letter == "-" else "x" for letter in present)


def runs(picture: str, wanted: str) -> list[tuple[int, int]]:
    """Maximal runs of pages whose letter is in ``wanted``."""
    found: list[tuple[int, int]] = []
    for index, letter in enumerate(picture):
        if letter in wanted:
            first, count = found.pop() if found and sum(found[-1]) == index else (index, 0)
            found.append((first, count + 1))
    return found


@st.composite
def pictures(draw: st.DrawFn, letters: str, length: int) -> str:
    """Stretches of equal letters, as RAM has them."""
    picture = ""
    while len(picture) < length:
        picture += draw(st.sampled_from(letters)) * draw(st.sampled_from((1, 1, 2, 3, 15, 16, 17, 62, 64, 65, 260)))
    return picture[:length]


LENGTHS = st.sampled_from((1, 2, 63, 64, 65, 128, 255, 256, 257, 320, 700))


WINDOWS = st.sampled_from((64, 256, 512))
HOW = st.sampled_from([{"late": late, "copied": copied} for late in (False, True) for copied in (False, True)])
"""Channels that write at once and late, sources that map and copy."""


@given(st.data(), LENGTHS, st.sampled_from((0, 1, 16, 255)), WINDOWS, HOW)
def test_a_new_file_gets_what_the_naive_twin_writes(
    data: st.DataObject, length: int, gap: int, window: int, how: dict[str, bool]
) -> None:
    ram = data.draw(pictures("A0b-", length))
    outcome = run_job(ram, gap=gap, window=window, **how)
    assert (outcome.pages, outcome.present) == twin(ram, "x" * length, "-" * length)
    assert outcome.allocated == 0
    assert outcome.tally.written_pages == sum(letter in "Ab" for letter in ram)
    assert outcome.tally.zero_pages == ram.count("0")
    written = sum(count for _, count in outcome.writes)
    assert outcome.tally.gap_pages == written - outcome.tally.written_pages
    assert outcome.tally.bytes == written * PAGE
    assert not outcome.punches


@given(st.data(), LENGTHS, st.sampled_from((0, 16, 255)), WINDOWS, HOW)
def test_a_later_round_brings_any_file_to_what_the_naive_twin_makes_of_it(
    data: st.DataObject, length: int, gap: int, window: int, how: dict[str, bool]
) -> None:
    """Invariants 5 and 6: dirty zero pages lose their bit and their bytes, clean pages are as they were."""
    ram = data.draw(pictures("A0b-", length))
    dirty = data.draw(pictures("x-", length))
    before = "".join(
        data.draw(st.sampled_from("B-!")) if mark != "-" and letter != "-" else letter.replace("0", "-")
        for letter, mark in zip(ram, dirty, strict=True)
    )
    outcome = run_job(ram, dirty, before=before, gap=gap, round_number=1, window=window, **how)
    assert (outcome.pages, outcome.present) == twin(ram, dirty, before)
    assert outcome.allocated == 0


@given(st.data(), LENGTHS)
def test_without_gaps_each_run_in_a_window_is_one_write(data: st.DataObject, length: int) -> None:
    ram = data.draw(pictures("A0-", length))
    outcome = run_job(ram, gap=0, shards=[Shard(0, 0, -(-length // 64), length)])
    joined = [""]
    for start in range(0, length, WINDOW_PAGES):  # as long as they have no more pages than one may have
        window = ram[start : start + WINDOW_PAGES]
        if sum(letter != "-" for letter in joined[-1] + window) > WINDOW_PAGES:
            joined.append("")
        joined[-1] += window
    starts = [sum(map(len, joined[:number])) for number in range(len(joined))]
    assert outcome.writes == [
        (start + first, count) for start, part in zip(starts, joined, strict=True) for first, count in runs(part, "A")
    ]


@pytest.mark.parametrize(("copied", "writes"), [(False, [(255, 2)]), (True, [(255, 1), (256, 1)])])
def test_only_where_nothing_is_copied_windows_with_few_pages_are_joined(
    copied: bool, writes: list[tuple[int, int]]
) -> None:
    assert run_job("-" * 255 + "AB" + "-" * 255, copied=copied, shards=[Shard(0, 0, 8, 2)]).writes == writes


def test_a_dense_block_is_written_in_pieces_of_one_mib() -> None:
    outcome = run_job("A" * 600, shards=[Shard(0, 0, 10, 600)])
    assert outcome.writes == [(0, 256), (256, 256), (512, 88)]


def test_a_gap_of_zero_pages_is_written_along_but_not_counted_as_data() -> None:
    outcome = run_job("A0000A" + "0" * 17 + "A", gap=16)
    assert outcome.writes == [(0, 6), (23, 1)]
    assert (outcome.tally.written_pages, outcome.tally.gap_pages) == (3, 4)
    assert outcome.present == "x----x" + "-" * 17 + "x"


def test_a_gap_of_clean_pages_is_written_along_with_what_ram_holds() -> None:
    """Invariant 6."""
    outcome = run_job("ABCDE", "x---x", before="aBCDe", gap=16, round_number=1)
    assert outcome.writes == [(0, 5)]
    assert (outcome.pages, outcome.present) == ("ABCDE", "xxxxx")


def test_a_hole_is_written_along_as_zeros_and_never_read() -> None:
    """Invariant 7."""
    outcome = run_job("A-AA0A--A---A", gap=2)
    assert outcome.writes == [(0, 9), (12, 1)]
    assert outcome.pages == "A0AA0A00A000A"
    assert outcome.present == "x-xx-x--x---x"
    assert outcome.allocated == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("window", [64, 256])
def test_pages_that_do_not_last_are_written_before_the_next_ones_take_their_place(late: bool, window: int) -> None:
    ram = "".join(chr(ord("A") + number) * window for number in range(8))
    outcome = run_job(ram, late=late, copied=True, window=window, shards=[Shard(0, 0, window // 8, 8 * window)])
    assert outcome.pages == ram
    assert outcome.writes == [(number * window, window) for number in range(8)]


@pytest.mark.parametrize("copied", [False, True])
def test_a_hole_is_punched_after_what_was_written_along_over_it(copied: bool) -> None:
    """Or a write that is still under way would come after the hole, and the page would take space for nothing."""
    ram = "A" + "0" * HOLE_PAGES + "B" + "C" * 62
    dirty, before = "x" * (HOLE_PAGES + 2), "A" + "B" * HOLE_PAGES + "B" + "C" * 62
    outcome = run_job(ram, dirty, before=before, gap=HOLE_PAGES, round_number=1, late=True, copied=copied)
    assert outcome.pages == ram
    assert outcome.present == "x" + "-" * HOLE_PAGES + "x" * 63
    assert (outcome.writes, outcome.punches) == ([(0, HOLE_PAGES + 2)], [(1, HOLE_PAGES)])
    assert outcome.order == "WP"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_digests_are_those_of_the_pages_that_were_written(late: bool, copied: bool) -> None:
    ram = "A0B-" + "C" * 600 + "-" * 20 + "D"
    outcome = run_job(ram, gap=16, late=late, copied=copied)
    expected = [xxhash.xxh3_64_intdigest(content(letter)) if letter in "ABCD" else 0 for letter in ram]
    assert outcome.digests == expected


def test_a_page_whose_only_byte_is_its_last_is_not_zero() -> None:
    assert run_job("0a0").present == "-x-"


def test_a_clean_page_is_left_alone_whatever_ram_holds() -> None:
    outcome = run_job("ABC", "-x-", before="XYZ", round_number=1)
    assert (outcome.pages, outcome.present, outcome.writes) == ("XBZ", "xxx", [(1, 1)])


@pytest.mark.parametrize(("pages", "punched"), [(1, False), (HOLE_PAGES - 1, False), (HOLE_PAGES, True)])
def test_pages_that_became_zero_lose_their_bits_and_their_bytes(pages: int, punched: bool) -> None:
    """Invariant 5; zeros are written where that is quicker than a hole."""
    ram = "A" + "0" * pages + "B"
    outcome = run_job(ram, before="A" + "B" * (pages + 1), round_number=1)
    assert (outcome.pages, outcome.present) == (ram, "x" + "-" * pages + "x")
    assert outcome.punches == ([(1, pages)] if punched else [])


def test_a_page_without_a_bit_but_with_bytes_from_a_lost_shard_is_emptied() -> None:
    """Invariant 5: a worker wrote the page and died before it could say so; then the page became zero."""
    outcome = run_job("A0B", "-x-", before="A!B", round_number=1)
    assert (outcome.pages, outcome.present) == ("A0B", "x-x")


def test_doing_a_shard_twice_changes_nothing() -> None:
    ram = "A0b-" * 40
    once = run_job(ram, gap=1)
    shards = [Shard(0, 0, 3, 160)]
    again = run_job(ram, before=once.pages.replace("0", "-"), gap=1, shards=shards)
    assert (again.pages, again.present) == (once.pages, once.present)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_shard_writes_only_its_own_pages(workers: int) -> None:
    """Invariant 1: however RAM is divided, no page is written twice (RecordingChannel looks)."""
    ram = ("A0B-" + "C" * 61) * 80
    outcome = run_job(ram, gap=16, workers=workers)
    assert outcome.pages == ram.replace("-", "0")


@given(st.lists(pictures("x-", 700), min_size=1, max_size=3), st.integers(1, 9))
@at_most(15)
def test_shards_hold_every_dirty_page_once_and_share_no_word(dirty: list[str], workers: int) -> None:
    """Invariant 1, and why no bitmap needs a lock."""
    blocks = [RAMBlock(idstr=f"b{i}", used_length=len(each) * PAGE) for i, each in enumerate(dirty)]
    bitmaps = Ledger(blocks).dirty
    for bitmap, picture in zip(bitmaps, dirty, strict=True):
        mark(bitmap, picture)
    shards = plan_shards(bitmaps, workers=workers, round_number=5)
    words = [(s.block, word) for s in shards for word in range(s.first_word, s.first_word + s.words)]
    assert len(words) == len(set(words))
    used = {(index, word) for index, bitmap in enumerate(bitmaps) for word in np.flatnonzero(bitmap.words).tolist()}
    assert used <= set(words)
    assert sum(shard.pages for shard in shards) == sum(bitmap.count() for bitmap in bitmaps)
    assert {shard.round for shard in shards} <= {5}


@given(st.data(), LENGTHS, st.integers(0, 20), st.booleans())
def test_runs_are_joined_over_short_gaps_of_the_pages_allowed(
    data: st.DataObject, length: int, gap: int, any_page: bool
) -> None:
    picture = data.draw(pictures("A0-", length))
    given_runs = runs(picture, "A")
    expected: list[list[int]] = []
    for first, count in given_runs:
        between = picture[sum(expected[-1]) : first] if expected else None
        if between is None or len(between) > gap or ("-" in between and not any_page):
            expected.append([first, count])
        else:
            expected[-1][1] = first + count - expected[-1][0]
    allowed = None if any_page else np.array(bits(picture), np.uint8)
    assert merge_runs(np.array(given_runs, np.int64).reshape(-1, 2), gap, allowed).tolist() == expected
