"""What a choice is made from: the options, the data map, what writes cost there, and who waits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.models import CALLS_COST, ToldCosts, model
from support.saving import how_to, several

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.cost import ASSUMED
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.reports.choice import ChoiceReport
from parallel_fixedram.core.save_options import CaptureMode, DirectIO, Durability, SaveOptions
from parallel_fixedram.engine.tuning.decide import Decision, decide

PAGE = 4096
REFUSES = replace(CALLS_COST, direct={})


@pytest.fixture(autouse=True)
def told(costs: ToldCosts, room_in_the_page_cache: Callable[[int], None]) -> ToldCosts:
    """What writes cost; the page cache has room for a million pages."""
    costs.model = CALLS_COST
    room_in_the_page_cache(1_000_000 * PAGE)
    return costs


def runs(count: int, length: int, gap: int = 1) -> PageBitmap:
    """So many runs of so many pages."""
    bitmap = PageBitmap(count * (length + gap) or 1)
    for number in range(count):
        bitmap.set_range(PageRange(number * (length + gap), length))
    return bitmap


def decided(
    options: SaveOptions, *data: PageBitmap, guest_waits: bool = False, takes_direct: bool | None = True
) -> Decision:
    return decide(options, data, PAGE, "FOLDER", guest_waits=guest_waits, no_snapshot="no", takes_direct=takes_direct)


def test_the_model_is_asked_for_the_folder_and_the_bytes_that_may_hold_something(told: ToldCosts) -> None:
    decided(several(), runs(10, 3), runs(1, 5))
    decided(several(calibrate=True), runs(0, 0))
    assert told.asked == [("FOLDER", 35 * PAGE, False), ("FOLDER", 0, True)]


@pytest.mark.parametrize(
    ("guest_waits", "rounds", "capture", "direct"),
    [
        (False, 1, CaptureMode.STOPPED, True),
        (True, 1, CaptureMode.COMPARE, True),
        (False, 5, CaptureMode.ROUNDS, False),
        (True, 5, CaptureMode.ROUNDS, False),
    ],
)
@pytest.mark.parametrize("takes_direct", [True, None])
def test_the_choice_follows_from_who_waits_what_there_is_and_what_it_costs(
    guest_waits: bool, rounds: int, capture: CaptureMode, direct: bool, takes_direct: bool | None
) -> None:
    """A hundred runs whose gaps are bridged are one, and both are cut into windows: 12 direct writes, or 23 others."""
    options = several(channels=None, max_rounds=rounds, gap_pages=3)
    found = decided(options, runs(100, 3), runs(1, 5000), guest_waits=guest_waits, takes_direct=takes_direct)
    chosen = found.choice
    assert (chosen.capture, chosen.direct, chosen.channels, chosen.gap_pages) == (capture, direct, 1, 3)
    assert chosen.shard_pages == 5300 // 16
    size = (300 + 99 + 5000) * PAGE
    assert chosen.stable_seconds == pytest.approx(12 * 1e-4 + size * 1e-10 if direct else 23 * 1e-6 + size * 1e-9)
    assert found.model == CALLS_COST


def test_auto_is_direct_for_stretches_and_not_for_scattered_pages() -> None:
    """A call bypassing the page cache costs 100 microseconds, and as much as 250 pages."""
    assert decided(several(), runs(1, 10000)).choice.direct
    assert not decided(several(), runs(1000, 1, gap=400)).choice.direct
    assert decided(several(), runs(1000, 1, gap=400), runs(1, 200_000)).choice.direct
    for data in (runs(1, 10000), runs(1000, 1, gap=400)):
        assert decided(several(direct_io=DirectIO.ON), data).choice.direct
        assert not decided(several(direct_io=DirectIO.OFF), data, takes_direct=None).choice.direct


def test_auto_is_the_page_cache_for_a_live_save_and_direct_can_be_asked_for() -> None:
    assert not decided(several(max_rounds=2), runs(1, 10000)).choice.direct
    assert decided(several(max_rounds=2, direct_io=DirectIO.ON), runs(1, 10000)).choice.direct


def test_auto_is_the_page_cache_where_a_guest_waits_as_long_as_that_has_room(
    told: ToldCosts, room_in_the_page_cache: Callable[[int], None]
) -> None:
    told.model = model(direct={1: (100, 100)}, buffered={1: (0, 0.001)}, compare=1)
    room_in_the_page_cache(100 * PAGE)
    assert not decided(several(), runs(1, 80), guest_waits=True).choice.direct
    assert decided(several(), runs(1, 81), guest_waits=True).choice.direct
    assert not decided(several(), runs(1, 81)).choice.direct


def test_a_file_that_cannot_be_opened_for_direct_io_goes_through_the_page_cache_whatever_was_measured() -> None:
    found = decided(several(), runs(1, 10000), takes_direct=False)
    assert not found.choice.direct
    assert found.choice.why[0] == "page cache: the file system refuses direct I/O"
    assert found.model.direct == {}


def test_a_file_that_can_be_opened_for_direct_io_is_assumed_about_where_that_was_not_measured(
    told: ToldCosts,
) -> None:
    told.model = REFUSES
    found = decided(several(direct_io=DirectIO.ON), runs(1, 10000), takes_direct=True)
    assert found.choice.direct
    assert found.model.direct == ASSUMED.direct
    assert found.model.buffered == REFUSES.buffered


@pytest.mark.parametrize(("wanted", "direct"), [(DirectIO.ON, True), (DirectIO.OFF, False), (DirectIO.AUTO, False)])
def test_a_plan_for_direct_io_where_it_was_refused_is_assumed_about(
    told: ToldCosts, wanted: DirectIO, direct: bool
) -> None:
    """Nothing was tried; the save itself would say no."""
    told.model = REFUSES
    assert decided(several(direct_io=wanted), runs(1, 100), takes_direct=None).choice.direct is direct


def test_nothing_to_save_can_be_decided_about() -> None:
    for data in ((), (runs(0, 0),), (PageBitmap(65), PageBitmap(1))):
        assert decided(several(channels=None), *data).choice.channels == 1


def test_what_was_predicted_to_take_no_time_has_no_ratio() -> None:
    found = decided(several(durability=Durability.NONE), runs(0, 0))
    assert found.choice.stable_seconds == 0.0
    assert found.report(0.0, 1.0).measured_by_predicted is None


@pytest.mark.parametrize("durability", Durability)
def test_a_sync_that_is_not_wanted_is_not_predicted(told: ToldCosts, durability: Durability) -> None:
    told.model = replace(CALLS_COST, sync=1.0)
    found = decided(several(durability=durability), runs(1, 10))
    assert (found.choice.stable_seconds >= 2.0) is (durability is Durability.FULL)


def test_the_report_has_the_choice_its_reasons_and_the_model() -> None:
    found = decided(how_to(channels=None), runs(10, 3))
    chosen = found.choice
    assert found.report() == ChoiceReport(
        channels=1,
        direct_io=chosen.direct,
        gap_pages=chosen.gap_pages,
        shard_pages=chosen.shard_pages,
        capture="stopped",
        why=chosen.why,
        predicted_write_seconds=chosen.write_seconds,
        predicted_stable_seconds=chosen.stable_seconds,
        measured_write_seconds=None,
        measured_stable_seconds=None,
        measured_by_predicted=None,
        model=CALLS_COST.to_json(),
    )
    measured = found.report(0.5, 2.0)
    assert (measured.measured_write_seconds, measured.measured_stable_seconds) == (0.5, 2.0)
    assert measured.measured_by_predicted == pytest.approx(2.0 / chosen.stable_seconds)
    assert chosen.why[1] == "1 channel: more is multifd: Fixed-ram migration is incompatible with multifd"
