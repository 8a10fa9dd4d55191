"""Which way a save is written: what was asked for stays, what is fastest is chosen, and the reasons say so."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import CALLS_COST, cost, model

from parallel_fixedram.core import choice
from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.choice import (
    CANDIDATES,
    MAX_SAVE_SHARD_PAGES,
    ROOM_SHARE,
    SAVE_SHARDS_PER_WORKER,
    SHARD_SECONDS,
    WORTH,
    Situation,
)
from parallel_fixedram.core.cost import MAX_GAP_PAGES, Work
from parallel_fixedram.core.save_options import CaptureMode, Capturing, DirectIO, Gate, SaveOptions, Writing
from parallel_fixedram.core.shards import MIN_SHARD_PAGES, WINDOW_PAGES, WINDOW_PAGES_DIRECT

PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for, and what the gate allows."""

    channels: int | None = 1
    most_channels: int = 1
    why_most: str = ""
    direct_io: DirectIO = DirectIO.AUTO
    gap_pages: int | None = None
    shard_pages: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allows(Gate):
    """A gate that says how many channels there may be."""

    most: int
    why: str

    def most_channels(self):
        return self.most, self.why


class Rounds(Situation):
    """It is saved in rounds."""


def choose(wishes, work, device, situation):
    writing = Writing(direct_io=wishes.direct_io, gap_pages=wishes.gap_pages, shard_pages=wishes.shard_pages)
    gate = Allows(channels=wishes.channels, most=wishes.most_channels, why=wishes.why_most)
    mode = CaptureMode.COMPARE if situation.guest_waits else CaptureMode.AUTO
    if isinstance(situation, Rounds):
        mode = CaptureMode.ROUNDS
    options = SaveOptions(gate=gate, writing=writing, capture=Capturing(mode=mode))
    return choice.choose(options, work, device, situation)


NOBODY_WAITS = Situation(guest_waits=False, room=1 << 40, processors=4)
WAITS = replace(NOBODY_WAITS, guest_waits=True)
LIVE = Rounds(guest_waits=True, room=1 << 40, processors=4)
OPEN = Wishes()
FIXED = Wishes(channels=1, direct_io=DirectIO.OFF, gap_pages=0, shard_pages=1000)
"""Nothing is left open."""


def stretch(pages):
    """One run."""
    return Work(pages=pages, runs=1 if pages else 0, gaps=np.empty(0, np.int64), page_size=PAGE)


def scattered(runs, gap=1):
    """So many runs of one page, so far apart."""
    return Work(pages=runs, runs=runs, gaps=np.full(runs - 1, gap, np.int64), page_size=PAGE)


def test_what_was_asked_for_is_taken_as_it_is_and_needs_no_reason():
    wishes = Wishes(channels=3, direct_io=DirectIO.ON, gap_pages=7, shard_pages=100)
    for situation in (NOBODY_WAITS, WAITS, LIVE):
        found = choose(wishes, scattered(1000), CALLS_COST, situation)
        assert (found.channels, found.direct, found.gap_pages, found.shard_pages) == (3, True, 7, 100)
        assert found.why == ()
    assert not choose(replace(wishes, direct_io=DirectIO.OFF), stretch(10000), CALLS_COST, NOBODY_WAITS).direct


def test_no_gap_at_all_can_be_asked_for():
    found = choose(replace(OPEN, gap_pages=0), scattered(1000), CALLS_COST, NOBODY_WAITS)
    assert found.gap_pages == 0
    assert len(found.why) == 1


@pytest.mark.parametrize(("direct", "window"), [(True, WINDOW_PAGES_DIRECT), (False, WINDOW_PAGES)])
def test_a_window_is_as_large_as_suits_the_way(direct, window):
    wishes = replace(FIXED, direct_io=DirectIO.ON if direct else DirectIO.OFF)
    assert choose(wishes, stretch(1), CALLS_COST, NOBODY_WAITS).window_pages == window


def test_everything_that_was_left_open_has_a_sentence_in_the_same_order():
    wishes = Wishes(channels=None, most_channels=4, direct_io=DirectIO.AUTO)
    mode, channels, gaps = choose(wishes, stretch(100000), CALLS_COST, NOBODY_WAITS).why
    assert mode.startswith(("direct: ", "page cache: "))
    assert channels.startswith("1 channel: ")
    assert gaps.startswith("gaps of up to ")


# --- bypassing the page cache or not


def test_a_file_system_that_refuses_gets_the_page_cache():
    found = choose(OPEN, stretch(100000), model(buffered={1: (1, 1000)}), NOBODY_WAITS)
    assert not found.direct
    assert found.why[0] == "page cache: the file system refuses direct I/O"


def test_a_live_save_goes_through_the_page_cache_unless_told_otherwise():
    fast = model(direct={1: (0, 0.001)}, buffered={1: (100, 100)})
    found = choose(OPEN, stretch(100000), fast, LIVE)
    assert not found.direct
    assert found.why[0] == "page cache: the last one of several rounds is small"
    assert choose(replace(OPEN, direct_io=DirectIO.ON), stretch(100000), fast, LIVE).direct


def test_what_the_page_cache_cannot_take_while_a_guest_waits_goes_past_it():
    slow = model(direct={1: (100, 100)}, buffered={1: (0, 0.001)}, compare=1)
    room = 1000 * PAGE
    fits = round(ROOM_SHARE * room) // PAGE
    assert not choose(OPEN, stretch(fits), slow, replace(WAITS, room=room)).direct
    found = choose(OPEN, stretch(fits + 1), slow, replace(WAITS, room=room))
    assert found.direct
    assert found.why[0] == "direct: the page cache takes 3.1 MiB at once, there may be 3.1 MiB"
    for situation in (NOBODY_WAITS, LIVE):
        assert not choose(OPEN, stretch(fits + 1), slow, replace(situation, room=0)).direct
    assert not choose(replace(OPEN, direct_io=DirectIO.OFF), stretch(fits + 1), slow, replace(WAITS, room=0)).direct


def test_scattered_pages_go_through_the_page_cache_and_stretches_past_it():
    dear = replace(CALLS_COST, stable=cost(1, 1))
    few = choose(OPEN, scattered(1000, gap=10**6), dear, NOBODY_WAITS)
    assert not few.direct
    assert few.why[0] == "page cache: 0.005 s to stable storage predicted, 0.101 s direct"
    found = choose(OPEN, stretch(10000), dear, NOBODY_WAITS)
    assert found.direct
    assert found.why[0] == "direct: 0.006 s to stable storage predicted, 0.041 s through the page cache"


PAST_IS_QUICK = model(direct={1: (1, 0.5)}, buffered={1: (1, 0.1)}, stable=(1, 1), compare=0.3)
PAST_IS_SLOW = model(direct={1: (1, 100)}, buffered={1: (1, 0.1)}, stable=(1, 1), compare=0.3)


def test_a_guest_that_waits_waits_for_a_comparison_whichever_way_its_pages_went_before():
    for device, direct, why in (
        (PAST_IS_QUICK, True, "direct: 0.024 s to stable storage predicted, 0.047 s through the page cache"),
        (PAST_IS_SLOW, False, "page cache: 0.047 s to stable storage predicted, 4.099 s direct"),
    ):
        found = choose(OPEN, stretch(10000), device, WAITS)
        assert (found.direct, found.capture, found.write_seconds) == (direct, "compare", pytest.approx(0.003))
        assert found.why[0] == why
    for direct_io in DirectIO:
        wishes = replace(OPEN, direct_io=direct_io)
        assert choose(wishes, stretch(10000), PAST_IS_QUICK, WAITS).capture == "compare"
        for situation in (NOBODY_WAITS, LIVE):
            assert choose(wishes, stretch(10000), PAST_IS_QUICK, situation).capture != "compare"


def test_a_live_save_minds_the_last_write_and_others_stable_storage():
    """The page cache takes pages quickly, and hands them to the device slowly."""
    channels = Wishes(channels=None, most_channels=2, direct_io=DirectIO.OFF, gap_pages=0)
    device = model(direct={1: (1, 0.5)}, buffered={1: (0, 0.02), 2: (0, 0.01)}, stable=(0, 1))
    assert choose(channels, stretch(10000), device, LIVE).channels == 2
    assert choose(channels, stretch(10000), device, NOBODY_WAITS).channels == 1


def test_comparing_takes_as_long_as_the_processors_there_are_let_it():
    device = model(direct={1: (0, 0.001), 4: (0, 0.001)}, scan=1.0, compare=4.096)
    for processors, channels, seconds in ((1, 1, 2.0), (1, 4, 2.0), (2, 4, 1.0), (4, 4, 0.5), (4, 1, 2.0)):
        found = choose(replace(AUTO, channels=channels), stretch(PAGES), device, replace(WAITS, processors=processors))
        assert found.write_seconds == pytest.approx(seconds, rel=1e-3)


# --- channels


def pays(times):
    """A model in which so many channels take so many seconds for GIB bytes in either way."""
    each = {channels: (0, seconds) for channels, seconds in times.items()}
    return model(direct=each, buffered=each, stable=(0, 1e-3))


AUTO = Wishes(channels=None, most_channels=4, direct_io=DirectIO.ON, gap_pages=0)
PAGES = 10**9 // PAGE


@pytest.mark.parametrize(
    ("times", "channels"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.25}, 4),
        ({1: 1.0, 2: 0.5, 4: 0.5}, 2),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),
        ({1: 1.0, 2: 2.0, 4: 3.0}, 1),
        ({1: 1.0, 2: WORTH + 0.01, 4: WORTH + 0.01}, 1),
        ({1: 1.0, 2: WORTH - 0.01, 4: WORTH - 0.01}, 2),
        ({1: 1.0, 2: 0.97, 4: 0.94}, 4),
        ({1: 1.0, 2: 0.90, 4: 0.87}, 2),
        ({1: 1.0, 2: 2.0, 4: 0.5}, 4),
        ({1: 1.0, 2: 0.5}, 2),
        ({1: 1.0}, 1),
    ],
)
def test_more_channels_are_chosen_only_where_they_are_worth_it(times, channels):
    found = choose(AUTO, stretch(PAGES), pays(times), NOBODY_WAITS)
    assert found.channels == channels
    head, _, others = found.why[0].partition(", ")
    assert head == f"{channels} channel{'s' * (channels > 1)}: {found.stable_seconds:.3f} s predicted"
    assert [each.split(" s with ")[1] for each in others.split(", ")] == [str(c) for c in CANDIDATES if c != channels]


@pytest.mark.parametrize(("most", "chosen"), [(1, 1), (2, 2), (3, 2), (4, 4), (16, 4)])
def test_no_more_channels_are_chosen_than_are_allowed(most, chosen):
    wishes = replace(AUTO, most_channels=most, why_most="more is forbidden")
    found = choose(wishes, stretch(PAGES), pays({1: 1.0, 2: 0.5, 4: 0.25}), NOBODY_WAITS)
    assert found.channels == chosen
    if most == 1:
        assert found.why == ("1 channel: more is forbidden",)


def test_a_number_that_was_asked_for_is_not_held_against_what_is_allowed():
    found = choose(replace(AUTO, channels=3, most_channels=1), stretch(PAGES), pays({1: 1.0, 2: 0.5}), NOBODY_WAITS)
    assert (found.channels, found.why) == (3, ())
    assert found.write_seconds == pytest.approx(0.5, rel=1e-3)


def test_computing_takes_as_long_as_the_processors_there_are_let_it():
    """Looking at pages and their digests, direct, while the device is faster than that."""
    device = model(direct={1: (0, 0.001), 4: (0, 0.001)}, scan=1.0, digest=4.096)
    for processors, channels, seconds in ((1, 1, 2.0), (1, 4, 2.0), (2, 4, 1.0), (4, 4, 0.5), (4, 1, 2.0)):
        found = choose(
            replace(AUTO, channels=channels), stretch(PAGES), device, replace(NOBODY_WAITS, processors=processors)
        )
        assert found.write_seconds == pytest.approx(seconds, rel=1e-3)
        assert found.stable_seconds == pytest.approx(seconds, rel=1e-3)


# --- what is predicted


def test_the_prediction_of_a_direct_write_is_calls_and_bytes_and_where_a_guest_waits_the_comparison_for_that():
    device = model(direct={1: (100, 1), 4: (50, 0.5)}, reserve=10, digest=4.096, scan=0.1, compare=2)
    wishes = replace(AUTO, channels=4)
    work = scattered(1000, gap=5)
    write = 1001 * 50e-6 + 1000 * PAGE * 0.5e-9
    found = choose(wishes, work, device, NOBODY_WAITS)
    assert found.write_seconds == pytest.approx(write)
    assert found.stable_seconds == pytest.approx(1001 * 10e-6 + write)
    found = choose(wishes, work, device, WAITS)
    compared = (1000 * PAGE * 0.1e-9 + 1000 * 2e-6) / 4
    assert found.write_seconds == pytest.approx(compared)
    assert found.stable_seconds == pytest.approx(1001 * 10e-6 + write + compared)


def test_the_prediction_of_a_buffered_write_ends_when_the_device_has_it_and_digests_are_computed():
    device = model(buffered={1: (10, 0.1)}, stable=(20, 1))
    found = choose(FIXED, scattered(1000, gap=5), device, NOBODY_WAITS)
    calls, size = 1000 + 1000 // WINDOW_PAGES, 1000 * PAGE
    assert found.write_seconds == pytest.approx(calls * 10e-6 + size * 0.1e-9)
    assert found.stable_seconds == pytest.approx(calls * 20e-6 + size * 1e-9)
    windowed = replace(device, buffered_window=2e-3)
    work = replace(scattered(1000, gap=5), windows=7)
    copied = choose(FIXED, work, windowed, replace(NOBODY_WAITS, copied=True))
    assert copied.write_seconds == pytest.approx(found.write_seconds + 7 * 2e-3)
    joined = choose(FIXED, work, windowed, NOBODY_WAITS)
    assert joined.write_seconds == pytest.approx(found.write_seconds + 1000 / WINDOW_PAGES * 2e-3)
    slow = replace(device, digest_page=1e-3)
    assert choose(FIXED, scattered(1000, gap=5), slow, NOBODY_WAITS).stable_seconds == pytest.approx(
        found.stable_seconds + 1.0
    )


CACHED = model(
    direct={1: (20, 0.5), 2: (15, 0.4)},
    buffered={1: (10, 0.1)},
    stable=(20, 1),
    flush=(7, 1.5),
    sync=4000,
    first_sync=9000,
    start=30000,
    reserve=15,
    overlap=0.25,
    window=100,
    written_window=60,
    scan=0.2,
    digest=1.5,
    compare=1.0,
)
"""A device that has direct writes in a volatile cache when it says that they are done."""


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("guest_waits", [True, False])
@pytest.mark.parametrize("gap", [0, 3, 5])
def test_a_prediction_is_the_sum_that_its_naive_twin_adds_up_write_by_write(gap, guest_waits, durable):
    """One run after another is reserved and written; then comes what the sync has to do for each."""
    pages, lengths = [], np.random.default_rng(1).integers(1, 8, 300)
    for number, length in enumerate(lengths.tolist()):
        pages += [number % 2 == 0] * length
    bitmap = PageBitmap(len(pages))
    bitmap.set_pages(np.flatnonzero(pages))
    work = replace(
        Work.of([bitmap], PAGE), windows=2 * Work.of([bitmap], PAGE).windows
    )  # direct ones are twice as long
    runs, start = [], None
    for page in np.flatnonzero(pages).tolist():
        if start is not None and page - runs[-1][1] <= gap:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
            start = page
    calls = [size for first, end in runs for size in [PAGE * (end - first)]]
    calls += [0] * (sum(calls) // PAGE // WINDOW_PAGES_DIRECT)  # those that end at a window
    reserve = flush = 0.0
    device = work.windows / 2 * 60e-6
    for size in calls:
        reserve += 15e-6
        device += 20e-6 + 0.5e-9 * size
        flush += 7e-6 + 1.5e-9 * size
    look = work.windows / 2 * 100e-6 + work.pages * PAGE * 0.2e-9
    compare = work.pages * 1.0e-6 if guest_waits else 0.0
    computing = look + compare + work.pages * 1.5e-6
    write = device + computing - 0.25 * min(device, computing)
    stable = 0.03 + reserve + write + (flush + 0.009 + 0.004 if durable else 0.0)
    situation = replace(NOBODY_WAITS, guest_waits=guest_waits, durable=durable)
    found = choose(Wishes(direct_io=DirectIO.ON, gap_pages=gap), work, CACHED, situation)
    assert found.stable_seconds == pytest.approx(stable + (look + compare if guest_waits else 0.0))
    assert found.write_seconds == pytest.approx(look + compare if guest_waits else write)


@pytest.mark.parametrize("direct", [DirectIO.ON, DirectIO.OFF])
def test_the_sync_after_writes_takes_at_least_as_long_as_any_other(direct):
    for first_sync, seconds in ((0, 0.002), (1000, 0.002), (5000, 0.006)):
        device = model(direct={1: (0, 1)}, buffered={1: (0, 1)}, stable=(0, 1), sync=1000, first_sync=first_sync)
        found = choose(replace(OPEN, direct_io=direct), stretch(1000), device, NOBODY_WAITS)
        assert found.stable_seconds == pytest.approx(found.write_seconds + seconds)


def test_a_device_that_is_done_too_soon_is_not_preferred_for_it():
    """Direct writes return in half the time, and the sync takes as long again: the page cache wins."""
    soon = model(direct={1: (0, 0.5)}, buffered={1: (0, 0.1)}, stable=(0, 1))
    assert choose(OPEN, stretch(100000), soon, NOBODY_WAITS).direct
    honest = replace(soon, flush=cost(0, 1.0))
    assert not choose(OPEN, stretch(100000), honest, NOBODY_WAITS).direct
    assert choose(OPEN, stretch(100000), honest, replace(NOBODY_WAITS, durable=False)).direct is False, "0.1 is less"


@pytest.mark.parametrize(("durable", "gap"), [(True, 2), (False, 4)])
def test_gaps_are_judged_by_what_bytes_and_runs_cost_until_they_are_stable(durable, gap):
    device = model(direct={1: (4.1 * 4.096, 1)}, flush=(0.9 * 4.096, 1))
    found = choose(Wishes(direct_io=DirectIO.ON), scattered(10), device, replace(NOBODY_WAITS, durable=durable))
    assert found.gap_pages == gap


@pytest.mark.parametrize("situation", [NOBODY_WAITS, WAITS, LIVE])
@pytest.mark.parametrize("wishes", [OPEN, AUTO, FIXED])
def test_nothing_to_write_takes_no_time_and_can_be_chosen_for(wishes, situation):
    found = choose(wishes, stretch(0), CALLS_COST, situation)
    assert found.channels == 1
    assert found.write_seconds == 0.0
    assert found.shard_pages >= min(MIN_SHARD_PAGES, 1000)


# --- gaps


@pytest.mark.parametrize(
    ("direct", "situation", "gap", "worth"),
    [
        (DirectIO.ON, NOBODY_WAITS, 4, "18.0 KiB"),
        (DirectIO.ON, WAITS, 4, "18.0 KiB"),
        (DirectIO.ON, LIVE, 3, "14.0 KiB"),
        (DirectIO.OFF, NOBODY_WAITS, 9, "38.0 KiB"),
        (DirectIO.OFF, WAITS, 6, "26.0 KiB"),
        (DirectIO.OFF, LIVE, 6, "26.0 KiB"),
    ],
)
def test_a_gap_is_judged_by_what_a_call_costs_for_what_matters(direct, situation, gap, worth):
    """Space is reserved, and pages reach stable storage, while nobody waits."""
    device = model(
        direct={1: (3.5 * 4.096, 1)}, buffered={1: (6.5 * 4.096, 1)}, stable=(9.5 * 4.096, 1), reserve=1.0 * 4.096
    )
    found = choose(Wishes(direct_io=direct), scattered(10), device, situation)
    assert found.gap_pages == gap
    pages = f"{gap} page{'s' * (gap > 1)}"
    assert found.why == (f"gaps of up to {pages} are bridged: a call costs as much as {worth} (told)",)


def test_gaps_are_judged_by_the_cost_of_the_channels_that_are_chosen():
    device = model(direct={1: (10 * 4.096, 1), 4: (2.5 * 4.096, 0.5)})
    found = choose(replace(AUTO, gap_pages=None), stretch(PAGES), device, NOBODY_WAITS)
    assert (found.channels, found.gap_pages) == (4, 5)


def test_gaps_never_exceed_what_the_rule_allows_however_dear_a_call_is():
    assert choose(OPEN, scattered(10), model(stable=(1e6, 0.001)), NOBODY_WAITS).gap_pages == MAX_GAP_PAGES


# --- captures


def captured(mode, **situation):
    options = SaveOptions(capture=Capturing(mode=mode))
    return choice.choose(options, stretch(10000), PAST_IS_QUICK, replace(NOBODY_WAITS, **situation))


def test_auto_takes_a_snapshot_of_what_runs_where_nothing_is_against_it_and_else_says_what():
    assert captured("auto", guest_waits=True, no_snapshot="").capture == "snapshot"
    found = captured("auto", guest_waits=True, no_snapshot="the kernel is old")
    assert (found.capture, found.why[0]) == ("compare", "compare: no snapshot, because the kernel is old")
    assert captured("auto", guest_waits=False, no_snapshot="").capture == "stopped"


def test_a_snapshot_that_is_asked_for_is_taken_but_of_what_stands_still():
    assert captured("snapshot", guest_waits=True).capture == "snapshot"
    found = captured("snapshot", guest_waits=False)
    assert (found.capture, found.why[0].partition(":")[0]) == ("stopped", "stopped")


def test_nobody_waits_for_what_a_snapshot_writes():
    """It is written like RAM that stands still: with an eye on stable storage, whatever room the page cache has."""
    found, other = captured("snapshot", guest_waits=True, room=0), captured("stopped", guest_waits=False, room=0)
    assert replace(found, capture="", why=()) == replace(other, capture="", why=())


# --- properties

microseconds, nanoseconds = st.floats(0, 1000), st.floats(0.001, 100)
channel_costs = st.fixed_dictionaries(
    {1: st.tuples(microseconds, nanoseconds)}, optional={c: st.tuples(microseconds, nanoseconds) for c in (2, 4)}
)
models = st.builds(
    model,
    direct=st.just({}) | channel_costs,
    buffered=channel_costs,
    stable=st.tuples(microseconds, nanoseconds),
    reserve=microseconds,
    scan=st.floats(0, 1),
    digest=st.floats(0, 10),
    compare=st.floats(0, 10),
)
works = st.integers(0, 10**8).map(stretch) | st.builds(scattered, st.integers(1, 5000), st.integers(1, 300))
situations = st.sampled_from((Situation, Rounds)).flatmap(
    lambda kind: st.builds(kind, guest_waits=st.booleans(), room=st.integers(0, 1 << 35), processors=st.integers(1, 64))
)


@given(models, works, situations, st.integers(1, 16), st.sampled_from((None, 0, 5, 255)), st.sampled_from((None, 1)))
def test_what_is_chosen_is_within_its_bounds(device, work, situation, most, gap, shard):
    wishes = Wishes(channels=None, most_channels=most, why_most="of a rule", gap_pages=gap, shard_pages=shard)
    found = choose(wishes, work, device, situation)
    assert found.channels in CANDIDATES
    assert found.channels <= most
    assert found.direct in ({True, False} if device.direct and not isinstance(situation, Rounds) else {False})
    wanted = "rounds" if isinstance(situation, Rounds) else "compare" if situation.guest_waits else "stopped"
    assert found.capture == wanted
    assert 0 <= found.gap_pages <= MAX_GAP_PAGES
    assert shard is None or found.shard_pages == shard
    assert shard or MIN_SHARD_PAGES <= found.shard_pages <= MAX_SAVE_SHARD_PAGES
    assert 0 <= found.write_seconds <= found.stable_seconds < math.inf
    assert len(found.why) == 2 + (gap is None)
    assert found.why[0].startswith("direct: " if found.direct else "page cache: ")
    assert found.why[1].startswith(f"{found.channels} channel")


@given(models, works, situations)
def test_nothing_that_could_have_been_chosen_is_predicted_to_be_much_faster(device, work, situation):
    """As each way is predicted when it is asked for by name; the page cache is left where it has no room."""
    wishes = Wishes(channels=None, most_channels=4)
    found = choose(wishes, work, device, situation)

    def goal(way):
        return way.write_seconds if situation.guest_waits or isinstance(situation, Rounds) else way.stable_seconds

    both = device.direct and "predicted" in found.why[0]
    for direct in (True, False) if both else (found.direct,):
        for channels in CANDIDATES:
            named = replace(wishes, channels=channels, direct_io=DirectIO.ON if direct else DirectIO.OFF)
            other = choose(named, work, device, situation)
            assert goal(found) <= goal(other) / WORTH * (1 + 1e-9)
    named = replace(wishes, channels=found.channels, direct_io=DirectIO.ON if found.direct else DirectIO.OFF)
    assert replace(choose(named, work, device, situation), why=found.why) == found


@given(models, works, situations)
def test_the_same_question_has_the_same_answer(device, work, situation):
    wishes = Wishes(channels=None, most_channels=4)
    assert choose(wishes, work, device, situation) == choose(wishes, work, device, situation)


# --- shards


def test_a_shard_is_as_large_as_suits_its_time_and_leaves_enough_of_them():
    quick = model(buffered={1: (0, 0.001)})
    pages = 20 * MIN_SHARD_PAGES * SAVE_SHARDS_PER_WORKER
    wishes = replace(FIXED, shard_pages=None)
    assert choose(wishes, stretch(pages), quick, NOBODY_WAITS).shard_pages == 20 * MIN_SHARD_PAGES
    assert choose(wishes, stretch(100 * pages), quick, NOBODY_WAITS).shard_pages == MAX_SAVE_SHARD_PAGES
    assert choose(wishes, stretch(10), quick, NOBODY_WAITS).shard_pages == MIN_SHARD_PAGES
    # a device that writes 100,000 pages a second
    slow = model(buffered={1: (0, 1e4 / PAGE)})
    found = choose(wishes, stretch(100 * pages), slow, NOBODY_WAITS)
    assert found.shard_pages == pytest.approx(SHARD_SECONDS * 100_000, rel=0.01)
