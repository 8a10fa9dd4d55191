"""Figures of others beside those of a case."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.run_sets import case, run_set

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments import report
from parallel_fixedram.experiments.published import beside, parse_published
from parallel_fixedram.experiments.results import RunSet
from parallel_fixedram.experiments.scenario import parse_scenario
from parallel_fixedram.experiments.selection import with_overrides

TEXT = """
name = "s"
question = "Why?"
[[published]]
case = "slow *"
seconds = 100
by = "somebody <else>"
[[published]]
case = "quick*"
seconds = 25
by = "somebody <else>"
[[published]]
case = "quick *"
metric = "pause"
seconds = 0.5
by = "a third one"
[[published]]
case = "never *"
seconds = 1
by = "a third one"
[[case]]
way = "scan"
guest = "zero,size=4MiB"
"""


@pytest.fixture
def measured() -> RunSet:
    quick = case("quick b", [0.5, 1.0, 1.5])
    quick = replace(quick, samples=tuple(replace(s, seconds=replace(s.seconds, pause=0.25)) for s in quick.samples))
    return run_set(case("slow a", [2.0, 2.0, 3.0]), quick, scenario={"text": TEXT})


def test_figures_stand_beside_the_median_with_factors_to_the_first_of_the_same_publisher(measured: RunSet) -> None:
    rows = [(each.case, each.here, each.factor, each.published_factor) for each in beside(measured)]
    assert rows == [("slow a", 2.0, 1.0, 1.0), ("quick b", 1.0, 0.5, 0.25), ("quick b", 0.25, 1.0, 1.0)]


def test_the_report_has_them_and_says_nothing_where_a_scenario_names_none(measured: RunSet) -> None:
    page = report.page([("a", measured)], with_pictures=False)
    assert "<td>somebody &lt;else&gt;</td><td>quick b</td><td>total</td><td>25</td><td>0.25</td><td>1</td>" in page
    none = run_set(case("slow a", [2.0]), scenario={"text": ""})
    assert "others have published" not in report.page([("a", none)], with_pictures=False)


def test_a_scenario_that_is_changed_keeps_them() -> None:
    scenario = parse_scenario(TEXT, "s.toml")
    assert len(scenario.published) == 4
    changed = with_overrides(scenario, {"guest": ["zero,size=8MiB"]})
    assert parse_scenario(changed.text, "s.toml").published == scenario.published


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("x", r"^w, published: expected tables"),
        ([{"case": "a", "by": "b", "seconds": 0}], r"^w, published 1, seconds: expected a number above 0$"),
        ([{"case": "a", "by": "b", "seconds": True}], r"seconds: expected a number"),
        ([{"case": "a", "by": " ", "seconds": 1}], r"by: expected a text"),
        ([{"by": "b", "seconds": 1}], r"case: expected a text"),
        ([{"case": "a", "by": "b", "seconds": 1, "metric": "x"}], r"metric: expected one of total, last_write"),
        ([{"case": "a", "by": "b", "seconds": 1, "metric": []}], r"metric: expected one of"),
        ([{"case": "a", "by": "b", "seconds": 1, "x": 1}], r"x: unknown, expected one of case"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tables: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_published("w", tables)
