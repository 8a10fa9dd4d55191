import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.plain import from_plain
from parallel_fixedram.core.reports.boot import BootReport, BootSeconds
from parallel_fixedram.core.reports.diff import DiffReport
from parallel_fixedram.core.reports.difference import Difference
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.reports.save import (
    SaveReport,
    ShardTrace,
)
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.core.schemas import from_json, to_json

counts = st.integers(0, 1 << 62)
seconds = st.floats(0, 1e9)
texts = st.text(max_size=20)
values = st.dictionaries(texts, counts | texts | st.none() | st.lists(counts))
OF = {int: counts, float: seconds, str: texts, bool: st.booleans(), type(None): st.none()}


def of(kind):
    """A strategy for values of a type that reports have."""
    if kind in OF:
        return OF[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        return st.lists(of(inner[0]), max_size=3).map(tuple)
    if origin is UnionType:
        return st.one_of(*map(of, inner))
    if origin is Mapping:
        return values if inner[1] is Any else st.dictionaries(texts, of(inner[1]), max_size=3)
    hints = get_type_hints(kind)
    return st.builds(kind, **{each.name: of(hints[each.name]) for each in fields(kind)})


saves, plans, diffs = of(SaveReport), of(PlanReport), of(DiffReport)
boots = st.tuples(of(BootReport), st.sampled_from(("restore", "clone"))).map(lambda two: replace(two[0], verb=two[1]))
every = saves | plans | of(RestoreReport) | of(VerifyReport) | diffs


@given(every | boots)
def test_a_report_goes_to_json_and_comes_back_equal(report):
    text = json.dumps(to_json(report))
    assert from_json(type(report), json.loads(text)) == report
    assert next(iter(json.loads(text).items())) == ("schema", f"parallel_fixedram.{report.schema}")


@given(every)
def test_every_field_of_a_report_is_in_its_json(report):
    assert list(to_json(report)) == ["schema", "version", "verb", *(each.name for each in fields(report))]


@given(of(ShardTrace))
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
