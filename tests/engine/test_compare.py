"""Compare: pages are written while the guest runs, and what it changes meanwhile is written when it stands still."""

import errno
import os
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.channels import (
    DeadlyChannel,
    FailingChannel,
    HookChannel,
    RecordingChannel,
    SharedCounter,
    Through,
    Wrap,
    WrappedChannel,
)
from support.examples import at_most, some_of, stretches
from support.models import ToldCosts, model
from support.pictures import PAGE, allocated_pages, content, saved_picture
from support.saving import Heard, altered, save, several
from support.sources import ScriptedGuest

from parallel_fixedram.core.errors import HostError, WorkerError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.protocols import Channel, GuestBlock
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.save_options import DirectIO, SaveOptions
from parallel_fixedram.core.units import MIB
from parallel_fixedram.engine.pages.early_writeback import EarlyWriteback
from parallel_fixedram.engine.pages.writer import HOLE_PAGES
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.publish import PendingFile
from parallel_fixedram.host.memory.copied_source import CopiedSource
from parallel_fixedram.image import draft
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import verify

DIRECT = several(channels=2, direct_io=DirectIO.ON, gap_pages=4)
Ram = Mapping[str, str]
"""Pictures by block name."""


class ChangingGuest(ScriptedGuest):
    """Runs, and has RAM of one picture after the other.

    Args:
        ram: while it is pre-copied.
        rehearsed: from before firmware is written for the first time.
        stopped: from the pause on.
        copying: whether sources copy, so that the next pages take the place of these.
        small: names of the blocks that are firmware.
    """

    def __init__(
        self,
        ram: Ram,
        *,
        rehearsed: Ram | None = None,
        stopped: Ram | None = None,
        copying: bool = False,
        small: Collection[str] = (),
    ) -> None:
        super().__init__(ram, [lambda: self.become(stopped or rehearsed or ram)], small=small)
        self._rehearsed = rehearsed or ram
        self._prepared = 0
        if copying:
            for number, (each, fd) in enumerate(zip(self._blocks, self.fds.values(), strict=True)):
                each.source.close()
                self._blocks[number] = replace(each, source=CopiedSource(fd))

    def get_ready(self) -> None:
        self._prepared += 1
        if self._prepared == 2:  # the first time is before the first pass
            self.become(self._rehearsed)

    def become(self, ram: Ram) -> None:
        """Write whatever differs from these pictures."""
        for number, (fd, picture) in enumerate(zip(self.fds.values(), ram.values(), strict=True)):
            before = os.pread(fd, len(picture) * PAGE, 0)
            for index, letter in enumerate(picture):
                if letter != "-" and before[index * PAGE : (index + 1) * PAGE] != content(letter):
                    self.write(index, letter, number)

    @property
    def by_name(self) -> dict[str, GuestBlock]:
        return {each.block.idstr: each for each in self.guest_blocks()}


def plain(inner: FileChannel) -> Channel:
    """Direct writes that any file system takes."""
    return WrappedChannel(inner)


def saved(guest: ScriptedGuest, target: str, options: SaveOptions = DIRECT, **more: Any) -> SaveReport:
    try:
        report = save(guest, target, options, **more)
    except HostError as error:
        if "refuses direct I/O" in str(error):
            pytest.skip(str(error))
        raise
    assert report.choice.capture == "compare"
    assert report.direct_io
    return report


def twin(stopped: Ram, small: Collection[str] = ()) -> dict[str, str]:
    """What the file is to hold: no page of zeros, but for firmware, which is there as a whole."""
    return {
        name: picture.replace("-", "0") if name in small else picture.replace("0", "-")
        for name, picture in stopped.items()
    }


def check(target: str, guest: ChangingGuest, stopped: Ram, small: Collection[str] = ()) -> None:
    """The file is what RAM was at the pause, byte for byte, and so are its digests."""
    assert {name: saved_picture(target, name) for name in stopped} == twin(stopped, small)
    with Image(target) as image:
        assert verify(image, ram=guest.by_name).ok
        assert verify(image).ok


def place_of(guest: ScriptedGuest, page: int, block: int = 0) -> int:
    """File offset of a page."""
    layout = FileLayout.plan(guest.name, [each.block for each in guest.guest_blocks()])
    return layout.blocks[block].page_offset(page)


def folder(path: str) -> list[str]:
    return os.listdir(os.path.dirname(path))


# --- what changes between pre-copy and pause


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize("gap", some_of([16, 0], 2))
@pytest.mark.parametrize("direct", [None, plain])
def test_the_file_is_what_ram_was_at_the_pause(
    target: str, through: Through, copying: bool, gap: int, direct: Wrap | None
) -> None:
    """Same, changed, in its last byte, zeroed, un-zeroed, newly touched; in a second block and its half-used word."""
    before = {"ram": "ABcD0-" + "-" * 300 + "E" * 600, "second": "F" * 64 + "GH0-", "one": "-", "none": "-" * 65}
    after = {
        "ram": "AXx0YZ" + "-" * 299 + "W" + "E" * 299 + "0" + "E" * 299 + "e",
        "second": "F" * 63 + "00HIJ",
        "one": "K",
        "none": "-" * 64 + "0",
    }
    through(direct=direct)
    with ChangingGuest(before, stopped=after, copying=copying) as guest:
        saved(guest, target, altered(DIRECT, gap_pages=gap))
        check(target, guest, after)
        assert guest.calls == ["pause", "device_state", "resume"]
    assert folder(target) == ["FILE"]


@pytest.mark.parametrize("pages", some_of([1, 2, 63, 64, 65, 127, 128, 511, 512, 513], 3))
def test_the_last_pages_of_a_block_are_compared_however_many_there_are(
    target: str, through: Through, pages: int
) -> None:
    through(direct=plain)
    before, after = "A" * pages, "A" * (pages - 1) + "B"
    with ChangingGuest({"ram": before}, stopped={"ram": after}) as guest:
        assert saved(guest, target).rounds[1].written_pages == 1
        check(target, guest, {"ram": after})


def test_a_page_that_changed_and_changed_back_is_not_written_again(target: str, through: Through) -> None:
    through(direct=plain)
    ram = {"ram": "A0B-" * 50}
    with ChangingGuest(ram, rehearsed={"ram": "XYZ-" * 50}, stopped=ram) as guest:
        last = saved(guest, target).rounds[1]
        assert (last.dirty_pages, last.written_pages, last.zero_pages) == (0, 0, 0)
        check(target, guest, ram)


@pytest.mark.parametrize("rehearsed", some_of(["XB0-C0", "AB0-CD", "00000D", "ABXYZD"], 2))
@pytest.mark.parametrize("stopped", some_of(["YB0-C0", "AB0-CD", "000000", "ABXYZD"], 2))
def test_firmware_is_written_twice_and_is_what_it_was_at_the_pause(
    target: str, through: Through, rehearsed: str, stopped: str
) -> None:
    """Also a page that is what it was when it was pre-copied, but not when it was written for the first time."""
    through(direct=plain)
    small = {"bios"}
    stopped = "".join("0" if now == "-" != then else now for now, then in zip(stopped, rehearsed, strict=True))
    names = [{"ram": "A" * 70, "bios": bios} for bios in ("AB0-CD", rehearsed, stopped)]
    with ChangingGuest(names[0], rehearsed=names[1], stopped=names[2], small=small) as guest:
        saved(guest, target)
        check(target, guest, names[2], small)


@st.composite
def lives(draw: st.DrawFn) -> list[dict[str, str]]:
    """RAM of three blocks during the pre-copy, the rehearsal and the pause; what was touched stays so."""
    lengths = {"ram": draw(st.sampled_from((1, 63, 65, 600))), "second": draw(st.sampled_from((1, 64, 130))), "bios": 9}
    states = [{name: draw(stretches(length)) for name, length in lengths.items()}]
    for _ in range(2):
        state = {}
        for name, before in states[-1].items():
            now = draw(stretches(len(before)))
            keep = draw(st.integers(1, 7))  # every so many pages are left alone
            state[name] = "".join(
                old if index % keep == 0 or (new == "-" and old != "-") else new
                for index, (old, new) in enumerate(zip(before, now, strict=True))
            )
        states.append(state)
    return states


@given(
    states=lives(),
    channels=st.sampled_from((1, 3)),
    gap=st.sampled_from((0, 1, 16)),
    copying=st.booleans(),
    truly=st.booleans(),
)
@at_most(12)
def test_whatever_the_guest_does_meanwhile_the_file_is_its_ram_at_the_pause(
    tmp_path_factory: pytest.TempPathFactory,
    states: list[dict[str, str]],
    channels: int,
    gap: int,
    copying: bool,
    truly: bool,
) -> None:
    """Page by page, and the last round has written those that changed and no others."""

    class Pending(PendingFile):
        def open_direct(self, *_: object) -> Any:
            return super().open_direct() if truly else plain(self.channel)

    target = str(tmp_path_factory.mktemp("life") / "FILE")
    copied, rehearsed, stopped = states
    options = several(channels=channels, direct_io=DirectIO.ON, gap_pages=gap)
    with (
        pytest.MonkeyPatch.context() as patch,
        ChangingGuest(copied, rehearsed=rehearsed, stopped=stopped, copying=copying, small={"bios"}) as guest,
    ):
        patch.setattr(draft, "PendingFile", Pending)
        report = saved(guest, target, options)
        check(target, guest, stopped, {"bios"})
    main = [(a, b) for name in ("ram", "second") for a, b in zip(copied[name], stopped[name], strict=True)]
    changed = sum(old != new and new not in "-0" for old, new in main)
    emptied = sum(old not in "-0" and new in "-0" for old, new in main)
    last = report.rounds[1]
    assert changed <= last.written_pages <= changed + len(stopped["bios"])
    assert (last.zero_pages, last.gap_pages) == (emptied, 0)


# --- what is written


def test_pages_that_did_not_change_are_written_once(target: str, through: Through) -> None:
    copied: list[RecordingChannel] = []
    rest: list[RecordingChannel] = []

    def recording(into: list[RecordingChannel]) -> Wrap:
        def wrap(inner: FileChannel) -> Channel:
            into.append(RecordingChannel(inner, 16 * MIB))
            return into[-1]

        return wrap

    through(direct=recording(copied), buffered=recording(rest))
    before = "A0B-" + "C" * 600
    after = "X0B-" + "C" * 300 + "Y" + "C" * 200 + "0" + "C" * 97 + "Z"
    with ChangingGuest({"ram": before}, stopped={"ram": after}) as guest:
        start, end = place_of(guest, 0), place_of(guest, len(before))
        report = saved(guest, target, altered(DIRECT, gap_pages=0))
        check(target, guest, {"ram": after})
    first, last = report.rounds
    assert (first.dirty_pages, first.written_pages, first.zero_pages) == (603, 602, 1)
    assert (last.dirty_pages, last.written_pages, last.zero_pages, last.gap_pages) == (4, 3, 1, 0)
    assert report.bytes.written == (602 + 3 + 1) * PAGE
    assert sum(worker.written_pages for worker in report.workers) == 602 + 3
    assert not copied[0].events("!P")
    assert sum(event.length for event in copied[0].events("W")) == 602 * PAGE
    in_pages = [event for event in rest[0].events() if start <= event.offset < end]
    assert sorted(((event.offset - start) // PAGE, event.kind, event.length // PAGE) for event in in_pages) == [
        (0, "W", 1),
        (304, "W", 1),
        (505, "W", 1),
        (603, "W", 1),
    ]


def test_a_guest_that_changes_nothing_waits_for_no_write(target: str, through: Through) -> None:
    through(direct=plain)
    with ChangingGuest({"ram": "A0B-" * 100, "bios": "C0-"}, small={"bios"}) as guest:
        report = saved(guest, target)
        check(target, guest, {"ram": "A0B-" * 100, "bios": "C0-"}, {"bios"})
    assert report.rounds[1].written_pages == 0
    assert [block.data_pages for block in report.blocks] == [200, 3]


def test_a_page_that_became_zero_has_no_bit_no_bytes_and_no_digest(target: str, through: Through) -> None:
    """Invariant 5."""
    through(direct=plain)
    with ChangingGuest({"ram": "A" * 70}, stopped={"ram": "A" * 33 + "0" + "A" * 36}) as guest:
        saved(guest, target, altered(DIRECT, channels=1))
    with Image(target) as image:
        block = image.block("ram")
        assert not image.bitmap("ram").test(33)
        assert image.channel.bytes_at(block.page_offset(33), PAGE) == bytes(PAGE)
        table = image.digest_table(block)
        assert table is not None
        pages = np.zeros((1, PAGE // 8), np.uint64)
        assert table.mismatches(33, pages, np.zeros(1, np.uint8)).tolist() == [0]
        assert table.mismatches(32, pages, np.zeros(1, np.uint8)).tolist() == [1]


@pytest.mark.parametrize("back", [False, True])
def test_a_page_that_changes_while_it_is_written_is_compared_with_what_was_written(
    target: str, through: Through, back: bool
) -> None:
    """Its copy is written and hashed, not RAM."""
    picture = "A" * 1100
    changed = "A" * 700 + "X" + "A" * 399
    stopped = {"ram": picture if back else changed}
    with ChangingGuest({"ram": picture}, rehearsed={"ram": changed}, stopped=stopped) as guest:
        place = place_of(guest, 700)
        through(direct=lambda inner: HookChannel(inner, place, lambda: guest.write(700, "X")))
        report = saved(guest, target)
        assert report.rounds[1].written_pages == (0 if back else 1)
        check(target, guest, stopped)


@pytest.mark.parametrize("direct", [None, plain])
def test_gaps_over_pages_never_touched_leave_memory_as_large_as_it_was(
    target: str, through: Through, direct: Wrap | None
) -> None:
    through(direct=direct)
    before = "A-A--A" + "0-" * 40 + "-" * 300 + "B-0-B" * 60
    with ChangingGuest({"ram": before}, stopped={"ram": before.replace("A", "C")}) as guest:
        taken = allocated_pages(guest.fds["ram"])
        report = saved(guest, target, altered(DIRECT, gap_pages=16))
        assert report.rounds[0].gap_pages > 0
        assert allocated_pages(guest.fds["ram"]) == taken
        check(target, guest, {"ram": before.replace("A", "C")})


# --- lost workers


class DyingChannel(DeadlyChannel):
    """Lets the write happen, then something else, and kills its worker."""

    def __init__(self, inner: Channel, offset: int, act: Callable[[], object]) -> None:
        super().__init__(inner, offset)
        self._act = act

    def hooked(self, offset: int, data: memoryview) -> None:
        self.inner.write(offset, data)
        self._act()
        os.kill(os.getpid(), signal.SIGKILL)


class DyingAtPunch(DyingChannel):
    """Kills the next worker, too, just before it makes the first hole."""

    def __init__(self, inner: Channel, offset: int, act: Callable[[], object]) -> None:
        super().__init__(inner, offset, act)
        self._punches = SharedCounter(1)

    def punch(self, offset: int, length: int) -> None:
        if self._punches.take():
            os.kill(os.getpid(), signal.SIGKILL)
        super().punch(offset, length)

    def close(self) -> None:
        super().close()
        self._punches.close()


LONG = "A" * 1000


@pytest.mark.parametrize("died", [DyingChannel, DyingAtPunch])
@pytest.mark.parametrize("gap", some_of([4, 0], 2))
@pytest.mark.parametrize("letter", ["0", "X"])
@pytest.mark.parametrize("page", some_of([555, 3], 2))
def test_a_shard_that_was_written_and_lost_leaves_no_stale_bytes_and_digests(
    target: str, through: Through, died: type[DyingChannel], gap: int, letter: str, page: int
) -> None:
    """By the time another worker does it again, a page of it, in the same window as what was written last or in an
    earlier one, is zero: it has to be punched out, or nobody would."""
    after = {"ram": LONG[:page] + letter + LONG[page + 1 :]}
    with ChangingGuest({"ram": LONG}, rehearsed=after) as guest:
        place = place_of(guest, 555)
        through(direct=lambda inner: died(inner, place, lambda: guest.write(page, letter)))
        report = saved(guest, target, altered(DIRECT, channels=4, gap_pages=gap, shard_pages=1024))
        check(target, guest, after)
    assert report.rounds[1].written_pages == 0


def test_a_worker_that_dies_in_the_middle_of_a_pre_copied_write_costs_a_repetition(
    target: str, through: Through
) -> None:
    after = {"ram": "B" + LONG[1:]}
    with ChangingGuest({"ram": LONG}, stopped=after) as guest:
        place = place_of(guest, 600)
        through(direct=lambda inner: DeadlyChannel(inner, place))
        report = saved(guest, target)
        check(target, guest, after)
    assert report.rounds[1].written_pages == 1


def test_a_worker_that_dies_in_the_last_round_costs_a_repetition(target: str, through: Through) -> None:
    after = {"ram": "A" * 500 + "XY0Z" + "A" * 496}
    with ChangingGuest({"ram": LONG}, stopped=after) as guest:
        place = place_of(guest, 501)
        through(direct=plain, buffered=lambda inner: DeadlyChannel(inner, place))
        saved(guest, target)
        check(target, guest, after)


def test_a_worker_that_dies_before_it_makes_a_hole_in_the_last_round_costs_a_repetition(
    target: str, through: Through
) -> None:
    after = {"ram": "A" * 500 + "X00Z" + "A" * 496}
    with ChangingGuest({"ram": LONG}, stopped=after) as guest:
        through(direct=plain, buffered=lambda inner: DyingAtPunch(inner, -1, lambda: None))
        saved(guest, target)
        check(target, guest, after)


def test_a_worker_that_dies_over_firmware_costs_a_repetition(target: str, through: Through) -> None:
    """In the rehearsal; the page is then what it was when it was pre-copied."""
    states = [{"ram": "A" * 70, "bios": bios} for bios in ("BC0", "XC0", "BC0")]
    with ChangingGuest(states[0], rehearsed=states[1], stopped=states[2], small={"bios"}) as guest:
        place = place_of(guest, 0, block=1)
        through(direct=plain, buffered=lambda inner: DeadlyChannel(inner, place))
        saved(guest, target)
        check(target, guest, states[2], {"bios"})


def test_without_workers_the_guest_is_never_stopped(target: str, through: Through) -> None:
    with ChangingGuest({"ram": LONG}) as guest:
        place = place_of(guest, 600)
        through(direct=lambda inner: DeadlyChannel(inner, place, times=100))
        with pytest.raises(WorkerError, match="no worker is left"):
            save(guest, target, DIRECT)
        assert (guest.calls, guest.running) == ([], True)
    assert folder(target) == []


# --- failures


@pytest.mark.parametrize("successes", [0, 1, 5])
def test_a_device_that_is_full_fails_the_save_and_the_guest_was_never_stopped(
    target: str, through: Through, successes: int
) -> None:
    through(direct=lambda inner: FailingChannel(inner, errno=errno.ENOSPC, successes=successes))
    with ChangingGuest({"ram": "A-" * 10}) as guest:
        with pytest.raises(HostError, match="no space left") as caught:
            save(guest, target, altered(DIRECT, gap_pages=0))
        assert caught.value.errno == errno.ENOSPC
        assert (guest.calls, guest.running) == ([], True)
    assert folder(target) == []


def test_a_failing_write_of_what_changed_fails_the_save_and_the_guest_goes_on(target: str, through: Through) -> None:
    through(direct=plain, buffered=lambda inner: FailingChannel(inner, errno=errno.EIO))
    with ChangingGuest({"ram": LONG}, stopped={"ram": "B" + LONG[1:]}) as guest:
        with pytest.raises(HostError, match="input/output error"):
            save(guest, target, DIRECT)
        assert (guest.calls[0], guest.calls[-1], guest.running) == ("pause", "resume", True)
    assert folder(target) == []


def test_an_interrupt_leaves_the_guest_running_and_nothing_behind(target: str, through: Through) -> None:
    class Interrupt(Observer):
        def phase(self, name: str, total: int = 0) -> None:
            if name == "first pass":
                raise KeyboardInterrupt
            assert name == "decide"

    through(direct=plain)
    with ChangingGuest({"ram": LONG}) as guest:
        with pytest.raises(KeyboardInterrupt):
            save(guest, target, DIRECT, observer=Interrupt())
        assert (guest.calls, guest.running) == ([], True)
    assert folder(target) == []


# --- when, and what is said of it


def test_the_pause_begins_when_everything_is_written_and_the_report_says_so(target: str, through: Through) -> None:
    through(direct=plain)
    seen: list[tuple[str, tuple[str, ...]]] = []

    class Noting(Heard):
        def phase(self, name: str, total: int = 0) -> None:
            super().phase(name, total)
            seen.append((name, tuple(guest.calls)))

    heard = Noting()
    with ChangingGuest({"ram": LONG}, stopped={"ram": "B" + LONG[1:]}) as guest:
        report = saved(guest, target, observer=heard)
    shards = [(shard.round, shard.ended) for shard in heard.shards]
    assert {calls for phase, calls in seen if phase == "first pass"} == {()}
    assert {calls[:1] for phase, calls in seen if phase == "write"} == {("pause",)}
    assert {phase for phase, _ in seen} == {"decide", "first pass", "prepare", "write", "sync"}
    assert [each.while_running for each in report.rounds] == [True, False]
    first, last = report.rounds
    seconds = report.seconds
    assert all(ended <= seconds.prepare for number, ended in shards if number == 0)
    assert all(ended > seconds.prepare for number, ended in shards if number == 1)
    assert 0 < first.seconds < seconds.prepare
    assert 0 < last.seconds <= seconds.ram <= seconds.pause < seconds.total - seconds.prepare
    assert {number for number, _ in shards} == {0, 1}


def test_which_capture_it_is_is_chosen_and_reported(target: str, through: Through, costs: ToldCosts) -> None:
    through(direct=plain)
    costs.model = model(direct={1: (1, 0.1)}, buffered={1: (10, 1)}, stable=(10, 1), compare=0.1)
    options = several()
    for running, rounds, direct_io, wanted in (
        (True, 1, DirectIO.AUTO, True),
        (True, 1, DirectIO.ON, True),
        (True, 1, DirectIO.OFF, True),
        (False, 1, DirectIO.ON, False),
        (True, 3, DirectIO.ON, False),
        (True, 3, DirectIO.AUTO, False),
    ):
        with ScriptedGuest({"ram": LONG}, running=running) as guest:
            asked = altered(
                options, **({"max_rounds": rounds} if rounds > 1 else {}), direct_io=direct_io, overwrite=True
            )
            report = save(guest, target, asked, dirty=guest if rounds > 1 else None)
        assert (report.choice.capture == "compare") == wanted
        if wanted and direct_io is DirectIO.AUTO:
            assert report.choice.why[0] == "compare: no snapshot, because nobody runs it"
            assert report.choice.why[1].startswith("direct: ")
        assert saved_picture(target) == LONG


@pytest.mark.parametrize(("pages", "punches"), [(HOLE_PAGES - 1, 0), (HOLE_PAGES, 1)])
def test_pages_that_were_emptied_are_made_a_hole_or_written_whichever_is_quicker(
    target: str, through: Through, pages: int, punches: int
) -> None:
    made: list[RecordingChannel] = []

    def recording(inner: FileChannel) -> Channel:
        made.append(RecordingChannel(inner, 16 * MIB))
        return made[-1]

    through(direct=plain, buffered=recording)
    after = "A" * 10 + "0" * pages + "A" * (990 - pages)
    with ChangingGuest({"ram": LONG}, stopped={"ram": after}) as guest:
        first, end = place_of(guest, 0), place_of(guest, len(LONG))
        report = saved(guest, target)
        check(target, guest, {"ram": after})
    assert report.rounds[1].zero_pages == pages
    assert report.rounds[1].gap_pages == 0
    given_back = 1  # in the end, when nobody waits
    assert sum(first <= event.offset < end for event in made[0].events("P")) == punches + given_back


@pytest.mark.parametrize("direct_io", [DirectIO.ON, DirectIO.OFF])
@pytest.mark.parametrize("rounds", [1, 2])
def test_only_what_went_through_the_page_cache_counts(
    target: str, through: Through, monkeypatch: pytest.MonkeyPatch, direct_io: DirectIO, rounds: int
) -> None:
    """After a pre-copy that is what changed, of a live save bypassing the page cache nothing."""
    told: list[int] = []
    monkeypatch.setattr(EarlyWriteback, "wrote", lambda _, offset, length, size, **_kw: told.append(size))
    through(direct=plain)
    changed = "B" + LONG[1:]
    with ChangingGuest({"ram": LONG}, rehearsed={"ram": changed}) as guest:
        options = altered(DIRECT, direct_io=direct_io, max_rounds=rounds)
        report = save(guest, target, options, dirty=guest if rounds > 1 else None)
    assert (report.choice.capture == "compare") == (rounds == 1)
    through_the_cache = {(DirectIO.ON, 1): 1, (DirectIO.ON, 2): 0, (DirectIO.OFF, 1): 1001, (DirectIO.OFF, 2): 1000}
    assert sum(told) == through_the_cache[direct_io, rounds] * PAGE
    assert saved_picture(target) == changed
