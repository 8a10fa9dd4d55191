"""Rounds while the guest runs: whatever it does meanwhile, the file is RAM as it was when it was paused."""

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.channels import (
    AfterChannel,
    DeadlyChannel,
    FailingChannel,
    HookChannel,
    LateChannel,
    RecordingChannel,
    Through,
)
from support.examples import at_most, letters, some_of
from support.pictures import PAGE, allocated_pages, content, marked, picture_of, read_all, saved_picture
from support.saving import save, several
from support.sources import AllDirty, ScriptedGuest

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.units import MIB
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.builtin.workload import render

FIRST = MIB
"""Where the page area begins in the files of this module."""

pytestmark = pytest.mark.usefixtures("every_round_counts")


def save_live(guest: ScriptedGuest, target: str, *, gap: int = 0, channels: int = 2) -> SaveReport:
    """Save in as many rounds as its script has parts."""
    options = several(
        channels=channels,
        direct_io=DirectIO.ON,
        max_rounds=len(guest.script),
        gap_pages=gap,
        stall_seconds=5,
        overwrite=True,
    )
    return save(guest, target, options, dirty=guest)


def saved(data: bytes) -> str:
    return picture_of(data).replace("0", "-")


def test_pages_written_between_the_rounds_are_in_the_file(target: str) -> None:
    with ScriptedGuest({"ram": "ABCDEFGH"}, ["........", "XY......", "...Z...."]) as guest:
        report = save_live(guest, target)
        assert saved_picture(target) == "XYCZEFGH"
    assert [each.written_pages for each in report.rounds] == [8, 2, 1]
    with Image(target) as image:
        assert verify(image).ok


def test_a_page_that_becomes_zero_in_a_later_round_loses_its_bit_and_its_bytes(target: str) -> None:
    """Invariant 5: ``!`` would be an absent page whose place still holds the first round's bytes."""
    with ScriptedGuest({"ram": "ABCDEFGH"}, ["........", "0..0....", ".0......"]) as guest:
        report = save_live(guest, target)
        assert len(report.rounds) == 3
    assert saved_picture(target) == "--C-EFGH"


def test_a_zero_page_that_becomes_data_gets_its_bit(target: str) -> None:
    with ScriptedGuest({"ram": "A00-----"}, ["........", ".B...C.."]) as guest:
        save_live(guest, target)
    assert saved_picture(target) == "AB---C--"


def test_a_page_that_goes_to_zero_and_back_is_there(target: str) -> None:
    with ScriptedGuest({"ram": "ABCDEFGH"}, ["........", "00......", "C......."]) as guest:
        save_live(guest, target)
    assert saved_picture(target) == "C-CDEFGH"


def test_a_zero_page_written_along_as_a_gap_that_becomes_data_and_zero_again_reads_as_zero(target: str) -> None:
    """Invariants 5 and 6."""
    with ScriptedGuest({"ram": "A0CDEFGH"}, ["........", ".X.Y....", ".0......"]) as guest:
        save_live(guest, target, gap=16)
    assert saved_picture(target) == "A-CYEFGH"


@pytest.mark.parametrize(("meanwhile", "expected"), [("X", "AXCDEFGH"), ("0", "A-CDEFGH")])
def test_a_gap_page_that_changes_while_it_is_written_along_comes_back_in_a_later_round(
    target: str, through: Through, meanwhile: str, expected: str
) -> None:
    """Invariant 6: page 1 is clean in the second round, a gap between two dirty ones, and changes while it is on the
    way; so the file has the new contents before its bit says so."""
    with ScriptedGuest({"ram": "A" + ("0" if meanwhile == "X" else "B") + "CDEFGH"}, ["", "A.C.....", ""]) as guest:
        through(lambda inner: HookChannel(inner, FIRST + 2 * PAGE, lambda: guest.write(1, meanwhile), skip=1))
        report = save_live(guest, target, gap=16)
        assert report.rounds[1].gap_pages == 1
        assert read_all(guest.fds["ram"]) == content(expected.replace("-", "0"))
    assert saved_picture(target) == expected


def test_a_page_that_changes_while_it_is_written_is_written_again(target: str, through: Through) -> None:
    with ScriptedGuest({"ram": "ABCDEFGH"}, ["", ""]) as guest:
        through(lambda inner: HookChannel(inner, FIRST, lambda: [guest.write(0, "0"), guest.write(7, "X")]))
        save_live(guest, target)
    assert saved_picture(target) == "-BCDEFGX"


@pytest.mark.parametrize(("then", "expected"), [("X", "XBCDEFGH"), ("0", "-BCDEFGH")])
def test_a_page_that_changes_before_its_digest_is_taken_has_the_right_one_in_the_end(
    target: str, through: Through, then: str, expected: str
) -> None:
    """Into the page cache it is written from where it is; what the file has of it and its digest differ for a round."""
    with ScriptedGuest({"ram": "ABCDEFGH"}, ["", ""]) as guest:
        through(buffered=lambda inner: AfterChannel(inner, FIRST, lambda: guest.write(0, then)))
        report = save(guest, target, several(direct_io=DirectIO.OFF, max_rounds=2), dirty=guest)
        assert len(report.rounds) == 2
    assert saved_picture(target) == expected
    with Image(target) as image:
        assert verify(image).ok


def test_a_page_first_touched_in_a_round_is_not_lost(target: str, through: Through) -> None:
    with ScriptedGuest({"ram": "A------H"}, ["", ""]) as guest:
        through(lambda inner: HookChannel(inner, FIRST, lambda: guest.write(3, "X")))
        save_live(guest, target, gap=16)
        assert allocated_pages(guest.fds["ram"]) == 3
    assert saved_picture(target) == "A--X---H"


def test_no_page_is_written_before_its_shard_of_the_round_before_is_acknowledged(target: str, through: Through) -> None:
    """Invariants 1 and 2: between two looks at the dirty bitmap no page is written twice, and none is in flight."""
    ram = "ABCDEFGH" * 400
    with ScriptedGuest({"ram": ram}) as guest:
        made: list[RecordingChannel] = []

        def record(inner: FileChannel) -> Channel:
            made.append(RecordingChannel(inner, FIRST + len(ram) * PAGE))
            return made[-1]

        def next_round(letter: str, count: int) -> Callable[[], None]:
            def act() -> None:
                if made:
                    assert not any(made[0]._in_flight[:])
                    made[0].next_round()
                for index in range(0, len(ram), len(ram) // count):
                    guest.write(index, letter)

            return act

        guest.script = [next_round(letter, count) for letter, count in (("0", 8), ("X", 1600), ("Y", 400), ("0", 100))]
        through(record)
        report = save_live(guest, target, channels=4)
        assert len(report.rounds) == 4
        events = made[0].events("WPN!")
        assert not [event for event in events if event.kind == "!"]
        assert len({event.pid for event in events if event.kind != "N"}) > 1
        assert saved_picture(target) == saved(read_all(guest.fds["ram"]))


@pytest.mark.parametrize("round_of_death", [0, 1, 2])
def test_no_dirty_page_is_lost_when_a_worker_dies_in_any_round(
    target: str, through: Through, round_of_death: int
) -> None:
    """Invariant 3: the worker has written half of the pages of its shard when it dies."""
    ram = "ABCDEFGH" * 40
    script = ["", ("X.0" * 40).ljust(320, "."), ("Y0." * 10).ljust(320, ".")]
    with ScriptedGuest({"ram": ram}, script) as guest:
        page = {0: 200, 1: 117, 2: 27}[round_of_death]
        through(lambda inner: DeadlyChannel(inner, FIRST + page * PAGE, skip=round_of_death))
        report = save_live(guest, target)
        assert len(report.rounds) == 3
        assert saved_picture(target) == saved(read_all(guest.fds["ram"]))


def test_the_pages_of_a_failed_shard_stay_dirty(target: str, through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 3: only what was acknowledged is clean."""
    kept: list[Ledger] = []

    class Kept(Ledger):
        def __init__(self, blocks: list[object]) -> None:
            super().__init__(blocks)
            kept.append(self)

    monkeypatch.setattr("parallel_fixedram.verbs.save.Ledger", Kept)
    ram = "A" * 1024
    with ScriptedGuest({"ram": ram}, ["", ""]) as guest:
        through(lambda inner: FailingChannel(inner, errno=5, successes=2))
        with pytest.raises(HostError, match="cannot write"):
            save_live(guest, target, channels=1)
        assert guest.running
    assert marked(kept[0].dirty[0]) == "-" * 512 + "x" * 512
    assert os.listdir(os.path.dirname(target)) == []


def test_a_source_that_says_everything_is_dirty_is_believed_but_no_hole_is_read(target: str) -> None:
    with ScriptedGuest({"ram": "A-0-B---", "other": "-" * 65}) as guest:
        before = [allocated_pages(fd) for fd in guest.fds.values()]
        options = several(direct_io=DirectIO.OFF, max_rounds=3, gap_pages=16)
        save(guest, target, options, dirty=AllDirty())
        assert [allocated_pages(fd) for fd in guest.fds.values()] == before
    assert saved_picture(target) == "A---B---"
    assert saved_picture(target, "other") == "-" * 65


def test_a_dirty_source_is_asked_once_more_after_the_pause(target: str) -> None:
    """What is written between the last round and the pause is in the file."""
    asked: list[bool] = []
    with ScriptedGuest({"ram": "ABCDEFGH"}, ["", "....X...", ".......0"]) as guest:
        sync = guest.sync

        def watched(into: list[PageBitmap]) -> int:
            asked.append(guest.running)
            return sync(into)

        guest.sync = watched
        save_live(guest, target)
    assert asked[-1] is False
    assert saved_picture(target) == "ABCDXFG-"


@pytest.mark.parametrize("late", [False, True])
@given(data=st.data())
@at_most(8)
def test_the_file_is_ram_as_it_was_when_it_was_paused_whatever_the_guest_does(
    target: str, through: Through, late: bool, data: st.DataObject
) -> None:
    """Also where a channel looks at pages only when it has to."""
    if late:
        through(LateChannel)
    length = data.draw(st.sampled_from((8, 63, 65, 300)))
    ram = data.draw(letters("A0-b", length))
    script = [""]
    for share in (4, 9, 20):
        picture = ["."] * length
        for index in data.draw(st.lists(st.integers(0, length - 1), max_size=max(length // share, 1))):
            picture[index] = data.draw(st.sampled_from("0XYz"))
        script.append("".join(picture))
    gap = data.draw(st.sampled_from((0, 1, 16)))
    with ScriptedGuest({"ram": ram, "still": "A-"}, script) as guest:
        save_live(guest, target, gap=gap)
        assert saved_picture(target) == saved(read_all(guest.fds["ram"]))
        played = script[: len(script) - len(guest.script)]  # the save may converge before the script ends
        touched = {index for picture in (ram.replace("-", "."), *played) for index, c in enumerate(picture) if c != "."}
        assert allocated_pages(guest.fds["ram"]) == len(touched)
    with Image(target) as image:
        assert verify(image).ok


@pytest.mark.slow
@pytest.mark.parametrize("workload", some_of(["hot", "sweep", "dense", "random"], 2))
def test_a_guest_that_really_runs_is_saved_as_it_was_when_it_was_paused(target: str, workload: str) -> None:
    with GuestProcess(GuestSpec.parse(f"{workload},size=16MiB,fraction=0.5,rate=200MiB,seed=4")) as guest:
        guest.start()
        steps = []
        pause = guest.pause

        def noting_pause() -> bool:
            was_running = pause()
            steps.append(guest.steps)
            return was_running

        guest.pause = noting_pause
        options = several(channels=3, direct_io=DirectIO.OFF, max_rounds=10)
        save(guest, target, options, dirty=guest.log)
        with Image(target) as image:
            assert verify(image).ok
            assert image.read_pages("pc.ram", 0, guest.spec.pages) == render(guest.spec, steps[0]).tobytes()
