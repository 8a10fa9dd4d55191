"""What writes cost: the fit, the work, and the rule that says which gaps are worth bridging."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.models import model

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.cost import ASSUMED, MAX_GAP_PAGES, CallCost, DeviceModel, Work
from parallel_fixedram.core.shards import WINDOW_PAGES

PAGE = 4096
UNLIMITED = 1 << 40
"""Pages of a window that no write fills."""

calls_cost = st.floats(0, 1e-2)
bytes_cost = st.floats(1e-12, 1e-6)


@given(calls_cost, bytes_cost, st.integers(1, 1000), st.integers(1, 64), st.integers(1, 1000), st.integers(65, 512))
def test_a_device_whose_cost_is_linear_is_measured_exactly(call, byte, calls, pages, large_calls, large_pages):
    truth = CallCost(call=call, byte=byte)
    small, large = calls * pages * PAGE, large_calls * large_pages * PAGE
    found = CallCost.fit(
        (calls, small, truth.seconds(calls, small)), (large_calls, large, truth.seconds(large_calls, large))
    )
    assert found.call == pytest.approx(call, rel=1e-6, abs=1e-9)
    assert found.byte == pytest.approx(byte, rel=1e-6, abs=1e-15)


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0, 1e3), st.floats(0, 1e3))
def test_however_noisy_a_measurement_is_nothing_costs_less_than_nothing(calls, large_calls, seconds, large_seconds):
    found = CallCost.fit((calls, calls * PAGE, seconds), (large_calls, large_calls * 512 * PAGE, large_seconds))
    assert found.call >= 0
    assert found.byte > 0
    assert 0 <= found.gap_pages(PAGE) <= MAX_GAP_PAGES


def test_large_writes_that_took_no_longer_than_small_ones_make_bytes_nearly_free():
    found = CallCost.fit((10, 10 * PAGE, 1e-3), (10, 5120 * PAGE, 1e-3))
    assert found.call == pytest.approx(1e-4, rel=1e-3)
    assert found.gap_pages(PAGE) == MAX_GAP_PAGES


@pytest.mark.parametrize(
    ("call", "byte", "gap"),
    [(0, 1e-9, 0), (4095e-9, 1e-9, 0), (4097e-9, 1e-9, 1), (3 * 4096.1e-9, 1e-9, 3), (1, 1e-9, MAX_GAP_PAGES)],
)
def test_a_gap_is_worth_as_many_pages_as_a_call_costs(call, byte, gap):
    assert CallCost(call=call, byte=byte).gap_pages(PAGE) == gap
    assert CallCost(call=call, byte=byte).gap_pages(2 * PAGE) <= gap


@pytest.mark.parametrize(
    ("call", "byte"),
    [(-1e-9, 1e-9), (1e-9, 0.0), (1e-9, -1e-9), (math.nan, 1e-9), (1e-9, math.nan), (math.inf, 1e-9), (0.0, math.inf)],
)
def test_a_cost_that_cannot_be_is_refused(call, byte):
    with pytest.raises(ValueError, match="cannot be"):
        CallCost(call=call, byte=byte)


@st.composite
def pictures(draw):
    """Stretches of data and of gaps, a letter a page."""
    picture = ""
    for _ in range(draw(st.integers(0, 12))):
        picture += draw(st.sampled_from("x-")) * draw(st.sampled_from((1, 1, 2, 3, 5, 16, 63, 64, 65, 255, 256, 300)))
    return picture


def bitmap_of(picture):
    bitmap = PageBitmap(len(picture))
    bitmap.set_pages(np.array([index for index, letter in enumerate(picture) if letter == "x"], np.int64))
    return bitmap


def work_of(*blocks):
    return Work.of([bitmap_of(each) for each in blocks], PAGE)


def written_along(picture, gap):
    """Page by page: a picture in which gaps of up to so many pages are filled."""
    pages = list(picture)
    for index, letter in enumerate(picture):
        if letter == "x":
            before = index - 1
            while before >= 0 and picture[before] == "-":
                before -= 1
            if before >= 0 and index - before - 1 <= gap:
                pages[before + 1 : index] = "x" * (index - before - 1)
    return "".join(pages)


def runs_in(picture):
    return sum(letter == "x" and picture[index - 1 : index] != "x" for index, letter in enumerate(picture))


@given(st.lists(pictures(), max_size=3))
def test_work_is_what_the_pages_one_by_one_say(blocks):
    work = work_of(*blocks)
    assert work.pages == sum(each.count("x") for each in blocks)
    assert work.size == work.pages * PAGE
    assert work.runs == sum(map(runs_in, blocks))
    pieces = (each[at : at + WINDOW_PAGES] for each in blocks for at in range(0, len(each), WINDOW_PAGES))
    assert work.windows == sum("x" in piece for piece in pieces)
    gaps = [len(gap) for each in blocks for gap in each.strip("-").split("x") if gap]
    assert work.gaps.tolist() == sorted(gaps)


@given(st.lists(pictures(), max_size=3), st.sampled_from((0, 1, 2, 3, 4, 16, 63, 64, 65, 255, 256, 10**9)))
def test_runs_are_joined_as_the_naive_twin_joins_them_page_by_page(blocks, gap):
    along = [written_along(each, gap) for each in blocks]
    calls, size = work_of(*blocks).merged(gap, UNLIMITED)
    assert calls == sum(map(runs_in, along))
    assert size == sum(each.count("x") for each in along) * PAGE


@given(st.lists(pictures(), max_size=3), st.sampled_from((0, 2, 64, 255)), st.sampled_from((1, 64, 256, 512)))
def test_writes_end_at_windows_to_within_one_a_run(blocks, gap, window):
    """Where a window begins inside a run is not known: so many pages make so many more writes on average."""
    along = [written_along(each, gap) for each in blocks]
    exact = 0
    for each in along:
        exact += sum(runs_in(each[start : start + window]) for start in range(0, len(each), window))
    calls, size = work_of(*blocks).merged(gap, window)
    runs = sum(map(runs_in, along))
    assert abs(calls - exact) <= runs
    assert calls >= runs
    assert size == sum(each.count("x") for each in along) * PAGE


def test_two_blocks_are_never_joined():
    assert work_of("xx", "xx").merged(255, UNLIMITED) == (2, 4 * PAGE)


@given(st.lists(pictures(), min_size=1, max_size=3), calls_cost, bytes_cost, st.integers(0, 300))
def test_no_fixed_gap_is_cheaper_than_the_rule(blocks, call, byte, fixed):
    """Beyond what the rule allows at most, a fixed gap can be: where bytes are nearly free."""
    cost, work = CallCost(call=call, byte=byte), work_of(*blocks)
    rule = cost.gap_pages(PAGE)
    assume(fixed <= MAX_GAP_PAGES or rule < MAX_GAP_PAGES)
    by_rule, by_fixed = (cost.seconds(*work.merged(gap, UNLIMITED)) for gap in (rule, fixed))
    assert by_rule <= by_fixed * (1 + 1e-9)


costs = st.dictionaries(st.sampled_from((2, 4, 8)), st.builds(CallCost, call=calls_cost, byte=bytes_cost), max_size=3)
models = st.builds(
    DeviceModel,
    source=st.sampled_from(("measured", "assumed")),
    direct=st.just({}) | costs.map(lambda more: {1: CallCost(call=0, byte=1e-9), **more}),
    buffered=costs.map(lambda more: {1: CallCost(call=0, byte=1e-9), **more}),
    stable=st.builds(CallCost, call=calls_cost, byte=bytes_cost),
    flush=st.builds(CallCost, call=calls_cost, byte=bytes_cost),
    sync=st.floats(0, 1),
    direct_sync=st.floats(0, 1),
    buffered_sync=st.floats(0, 1),
    start=st.floats(0, 1),
    reserve=st.floats(0, 1),
    overlap=st.floats(0, 1),
    window=st.floats(0, 1),
    direct_window=st.floats(0, 1),
    buffered_window=st.floats(0, 1),
    scan_byte=st.floats(0, 1),
    digest_page=st.floats(0, 1),
    hash_page=st.floats(0, 1),
)


@given(models)
def test_a_model_goes_to_json_and_comes_back_equal_but_for_where_it_came_from(found):
    data = json.loads(json.dumps(found.to_json()))
    assert DeviceModel.from_json(data, found.source) == found
    assert DeviceModel.from_json(data, "cached").source == "cached"


def places(value, path=()):
    """Every place inside a JSON object."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))


WHOLE = model(direct={1: (1, 1), 2: (1, 1)}, buffered={1: (1, 1), 4: (1, 1)}).to_json()
JUNK = (None, "x", "", [], [1], [[1]], {}, {"x": 1}, -1.0, math.nan, math.inf, 10**400)
HARMLESS = {("source",)}
"""What is not taken from there."""


@pytest.mark.parametrize(
    "path", [each for each in places(WHOLE) if each not in HARMLESS], ids=lambda each: "/".join(each)
)
def test_junk_in_any_place_is_refused(path):
    for junk in JUNK:
        if path == ("direct",) and not junk and isinstance(junk, list | dict | str):
            continue  # a file system that refuses direct I/O
        data = {"data": copy.deepcopy(WHOLE)}
        inside = data
        for name in ("data", *path[:-1]) if path else ():
            inside = inside[name]
        inside[path[-1] if path else "data"] = junk
        with pytest.raises((KeyError, OverflowError, TypeError, ValueError)):
            print(DeviceModel.from_json(data["data"], "cached"), "of", repr(junk)[:12])


@pytest.mark.parametrize("path", [each for each in places(WHOLE) if each and each not in HARMLESS], ids="/".join)
def test_a_model_in_which_something_is_missing_is_refused_or_knows_fewer_channels(path):
    data = copy.deepcopy(WHOLE)
    inside = data
    for name in path[:-1]:
        inside = inside[name]
    del inside[path[-1]]
    if path in {("direct", "2"), ("buffered", "4")}:
        assert DeviceModel.from_json(data, "cached") != DeviceModel.from_json(WHOLE, "cached")
        return
    with pytest.raises((KeyError, ValueError)):
        DeviceModel.from_json(data, "cached")


def test_more_than_all_cannot_be_hidden():
    with pytest.raises(ValueError, match="cannot be"):
        DeviceModel.from_json({**WHOLE, "overlap": 1.01}, "cached")


@given(calls_cost, bytes_cost, calls_cost, bytes_cost, st.integers(0, 1000), st.integers(0, 1 << 30))
def test_two_costs_one_after_the_other_take_what_both_take(call, byte, another, further, calls, size):
    one, two = CallCost(call=call, byte=byte), CallCost(call=another, byte=further)
    assert (one + two).seconds(calls, size) == pytest.approx(one.seconds(calls, size) + two.seconds(calls, size))


def test_what_is_assumed_can_be_reckoned_with():
    assert ASSUMED.source == "assumed"
    assert DeviceModel.from_json(ASSUMED.to_json(), "assumed") == ASSUMED
    assert 0 < ASSUMED.direct[1].gap_pages(PAGE) < 64
