import json
from dataclasses import asdict, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.plain import from_plain
from parallel_fixedram.core.reports.block import BlockReport
from parallel_fixedram.core.reports.boot import BootReport, BootSeconds, GuestReport
from parallel_fixedram.core.reports.choice import ChoiceReport
from parallel_fixedram.core.reports.diff import DiffReport, NotCompared
from parallel_fixedram.core.reports.difference import Difference
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.reports.restore import RestoredBlock, RestoreReport, RestoreSeconds
from parallel_fixedram.core.reports.save import (
    PhaseReport,
    RoundReport,
    SaveBytes,
    SaveReport,
    SaveSeconds,
    ShardTrace,
    WorkerReport,
)
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.core.schemas import from_json, to_json

counts = st.integers(0, 1 << 63)
seconds = st.floats(0, 1e9)
texts = st.text(max_size=20)
maybe = st.none() | counts


def tuples(of):
    return st.lists(of, max_size=3).map(tuple)


def build(kind, **others):
    """A strategy for a report whose fields are numbers but for those named."""
    known = {"seconds": seconds} | others
    return st.builds(kind, **{each.name: known.get(each.name, counts) for each in fields(kind)})


blocks = build(BlockReport, idstr=texts)
rounds = build(RoundReport, while_running=st.booleans())
all_seconds = dict.fromkeys(("total", "pause", "scan", "write", "digest", "sync", "publish", "read"), seconds)
differences = build(
    Difference, what=texts, idstr=st.none() | texts, first_page=maybe, offset=maybe, pages=st.integers(0, 1 << 40)
)
costs = st.fixed_dictionaries({"call": seconds, "byte": seconds})
choices = build(
    ChoiceReport,
    direct_io=st.booleans(),
    capture=texts,
    why=tuples(texts),
    predicted_write_seconds=seconds,
    predicted_stable_seconds=seconds,
    measured_write_seconds=st.none() | seconds,
    measured_stable_seconds=st.none() | seconds,
    measured_by_predicted=st.none() | seconds,
    model=st.dictionaries(texts, texts | seconds | costs | st.dictionaries(texts, costs)),
)
plans = build(
    PlanReport,
    file=texts,
    waits=st.booleans(),
    choice=choices,
    host=st.dictionaries(texts, counts | texts | st.none()),
)
saves = build(
    SaveReport,
    file=texts,
    direct_io=st.booleans(),
    capabilities=st.dictionaries(texts, st.booleans()),
    blocks=tuples(blocks),
    rounds=tuples(rounds),
    phases=tuples(build(PhaseReport, name=texts, started=seconds)),
    seconds=build(SaveSeconds, **all_seconds),
    bytes=build(SaveBytes, cached=maybe),
    choice=choices,
    workers=tuples(build(WorkerReport)),
    host=st.dictionaries(texts, counts | texts | st.none() | st.lists(counts)),
    notes=tuples(texts),
)
restores = build(
    RestoreReport,
    file=texts,
    direct_io=st.booleans(),
    blocks=tuples(build(RestoredBlock, idstr=texts, path=texts)),
    left_out=tuples(texts),
    verified=st.booleans(),
    seconds=build(RestoreSeconds, **all_seconds),
)
verifies = build(
    VerifyReport,
    file=texts,
    ok=st.booleans(),
    quick=st.booleans(),
    digests=st.booleans(),
    ram=tuples(texts),
    blocks=tuples(blocks),
    stale_pages=maybe,
    differences=tuples(differences),
    warnings=tuples(texts),
)
diffs = build(
    DiffReport,
    file_a=texts,
    file_b=texts,
    equal=st.booleans(),
    differences=tuples(differences),
    truncated=st.booleans(),
    only_in_a=tuples(texts),
    only_in_b=tuples(texts),
    not_compared=tuples(build(NotCompared, idstr=texts)),
)

boots = build(
    BootReport,
    verb=st.sampled_from(("restore", "clone")),
    file=texts,
    how=texts,
    direct_io=st.booleans(),
    guests=tuples(build(GuestReport, qmp=texts, log=texts, status=texts)),
    changes=tuples(texts),
    verified=st.booleans(),
    seconds=build(BootSeconds, total=seconds, fill=seconds, start=seconds, load=seconds),
    notes=tuples(texts),
)
every = saves | plans | restores | verifies | diffs


@given(every | boots)
def test_a_report_goes_to_json_and_comes_back_equal(report):
    text = json.dumps(to_json(report))
    assert from_json(type(report), json.loads(text)) == report
    assert next(iter(json.loads(text).items())) == ("schema", f"parallel_fixedram.{report.schema}")


@given(every)
def test_every_field_of_a_report_is_in_its_json(report):
    assert list(to_json(report)) == ["schema", "version", "verb", *(each.name for each in fields(report))]


@given(build(ShardTrace, started=seconds, ended=seconds))
def test_a_line_of_a_trace_goes_to_json_and_comes_back_equal(shard):
    assert from_json(ShardTrace, json.loads(json.dumps(asdict(shard)))) == shard


@given(diffs | plans, st.data())
def test_a_report_with_a_missing_field_is_refused(report, data):
    whole = json.loads(json.dumps(to_json(report)))
    del whole[data.draw(st.sampled_from([each.name for each in fields(report)]))]
    with pytest.raises(FormatError, match=f"not a {type(report).__name__}: Object missing required field"):
        from_json(type(report), whole)


@given(diffs | plans, st.data())
def test_a_report_with_a_value_of_another_type_is_refused(report, data):
    whole = json.loads(json.dumps(to_json(report)))
    field = data.draw(st.sampled_from([each for each in fields(report) if each.type != "Mapping[str, Any]"]))
    whole[field.name] = data.draw(st.sampled_from(({"x": 1}, [[1]])))
    with pytest.raises(FormatError, match=rf"not a {type(report).__name__}: .*`\$\.{field.name}"):
        from_json(type(report), whole)


@pytest.mark.parametrize("junk", [None, 1, "x", [], [1], {}])
def test_what_is_no_report_is_refused(junk):
    with pytest.raises(FormatError):
        from_json(DiffReport, junk)


@given(diffs)
def test_a_report_with_keys_of_a_later_version_is_read(report):
    assert from_json(DiffReport, {**json.loads(json.dumps(to_json(report))), "later": [1]}) == report


def test_numbers_of_numpy_are_numbers():
    report = BootSeconds(total=np.float64(1.5), fill=0.0, start=np.float64(0.5), load=1.0)
    assert from_plain(BootSeconds, json.loads(json.dumps(asdict(report)))) == report


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "digest does not match"),
        ({"offset": 0x86}, "digest does not match at 0x86"),
        ({"idstr": "m", "offset": 0x86}, "block 'm': digest does not match at 0x86"),
        ({"idstr": "m", "first_page": 7, "pages": 1}, "block 'm' page 7: digest does not match"),
        (
            {"idstr": "m", "first_page": 0, "pages": 64, "offset": 0x100000},
            "block 'm' pages 0-63 at 0x100000: digest does not match",
        ),
    ],
)
def test_a_difference_says_where_and_what(fields, text):
    nothing = {"what": "digest does not match", "idstr": None, "first_page": None, "pages": 0, "offset": None}
    assert str(Difference(**nothing | fields)) == text
