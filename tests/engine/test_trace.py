"""Who wrote which part of the file when."""

from itertools import pairwise
from pathlib import Path

import pytest
from support.pictures import PAGE, saved_picture
from support.saving import Heard, altered, save, several
from support.sources import ScriptedGuest

from parallel_fixedram.core.reports.save import SaveReport, ShardTrace
from parallel_fixedram.core.save_options import CaptureMode, DirectIO, SaveOptions
from parallel_fixedram.image.image import Image

PICTURES = {"ram": ("A0B-" + "C" * 61) * 100, "empty": "-" * 130, "small": "AB-C", "last": "D" * 1000}
OPTIONS = several(channels=3, direct_io=DirectIO.OFF, shard_pages=300)


def traced(guest: ScriptedGuest, target: str, options: SaveOptions) -> tuple[SaveReport, list[ShardTrace]]:
    heard, rounds = Heard(), options.capture.mode is CaptureMode.ROUNDS
    return save(guest, target, options, dirty=guest if rounds else None, observer=heard), heard.shards


def spanned(shards: list[ShardTrace], number: int) -> list[tuple[int, int]]:
    """Block and page of every page that a shard of a round spans."""
    return [
        (shard.block, page)
        for shard in shards
        if shard.round == number
        for page in range(shard.first_page, shard.first_page + shard.pages)
    ]


def check_times(shards: list[ShardTrace], report: SaveReport) -> None:
    """All inside the save, none of a worker's at the same time, and a round after the one before."""
    assert all(0 < shard.started <= shard.ended <= report.seconds.total for shard in shards)
    for worker in range(report.channels):
        own = sorted((shard.started, shard.ended) for shard in shards if shard.worker == worker)
        assert all(ended <= started for (_, ended), (started, _) in pairwise(own))
    for number in range(1, len(report.rounds)):
        before = [shard.ended for shard in shards if shard.round == number - 1]
        after = [shard.started for shard in shards if shard.round == number]
        assert max(before) <= min(after)


@pytest.mark.slow
@pytest.mark.parametrize("direct_io", [DirectIO.ON, DirectIO.OFF])
@pytest.mark.parametrize("running", [False, True])
def test_every_page_with_data_is_in_exactly_one_shard(target: str, direct_io: DirectIO, running: bool) -> None:
    with ScriptedGuest(PICTURES, running=running) as guest:
        report, shards = traced(guest, target, altered(OPTIONS, direct_io=direct_io))
    numbers = range(2 if running else 1)
    assert (report.choice.capture == "compare") == running
    data = {(block, page) for block, picture in enumerate(PICTURES.values()) for page, letter in enumerate(picture)
            if letter != "-"}  # fmt: skip
    for number in numbers:
        pages = spanned(shards, number)
        assert len(pages) == len(set(pages))
        assert data <= set(pages)
        assert all(page < len(list(PICTURES.values())[block]) for block, page in pages)
    assert {shard.round for shard in shards} == set(numbers)
    assert sum(shard.bytes for shard in shards if shard.round > 0) == 0
    check_times(shards, report)


def test_bytes_places_and_workers_are_those_of_the_report(target: str) -> None:
    with ScriptedGuest(PICTURES, running=False) as guest:
        report, shards = traced(guest, target, OPTIONS)
    assert sum(shard.bytes for shard in shards) == report.bytes.written
    assert all(0 <= shard.bytes <= shard.pages * PAGE for shard in shards)
    assert {shard.worker for shard in shards} <= set(range(3))
    assert [sum(shard.worker == worker for shard in shards) for worker in range(3)] == [
        each.shards for each in report.workers
    ]
    with Image(target) as image:
        places = [saved.header.pages_offset for saved in image.file.blocks]
    assert [shard.offset for shard in shards] == [places[shard.block] + shard.first_page * PAGE for shard in shards]
    assert Path(target).stat().st_size >= max(shard.offset + shard.bytes for shard in shards)


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "fewest"), [(64, 100), (300, 20), (10**6, 3)])
def test_shards_are_about_as_large_as_asked_for(target: str, wanted: int, fewest: int) -> None:
    with ScriptedGuest(PICTURES, running=False) as guest:
        report, shards = traced(guest, target, altered(OPTIONS, shard_pages=wanted, gap_pages=0))
    assert report.choice.shard_pages == wanted
    assert fewest <= len(shards) < 2 * fewest
    assert all(shard.bytes < (wanted + 64) * PAGE for shard in shards)


@pytest.mark.usefixtures("every_round_counts")
def test_each_round_of_a_live_save_has_its_pages_once(target: str) -> None:
    ram = "ABCDEFGH" * 100
    script = ["", ("X.0." + "." * 36) * 20, ("Y" + "." * 399) * 2]
    with ScriptedGuest({"ram": ram}, script) as guest:
        report, shards = traced(guest, target, altered(OPTIONS, max_rounds=3, shard_pages=64))
        written = ["x" * 800, script[1].replace(".", "-"), script[2].replace(".", "-")]
        assert len(report.rounds) == 3
    for number, picture in enumerate(written):
        pages = spanned(shards, number)
        assert len(pages) == len(set(pages))
        assert {(0, page) for page, letter in enumerate(picture) if letter != "-"} <= set(pages)
    assert sum(shard.bytes for shard in shards) == report.bytes.written
    assert {shard.round for shard in shards} == {0, 1, 2}
    check_times(shards, report)
    assert saved_picture(target)[:3] == "YB-"


def test_a_save_of_nothing_has_an_empty_trace(target: str) -> None:
    with ScriptedGuest({"ram": "-" * 300}, running=False) as guest:
        assert traced(guest, target, OPTIONS)[1] == []
