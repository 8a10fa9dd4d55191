"""Parts of scenarios, scenarios with other values, and when there are samples enough."""

import tomllib

import pytest
from support.cli import call, done, refused
from support.run_sets import case

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments import results, stopping
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.runner import run_scenario
from parallel_fixedram.experiments.scenario import load_scenario, parse_scenario, shipped, with_text
from parallel_fixedram.experiments.selection import parse_overrides, selected, with_overrides
from parallel_fixedram.experiments.statistics import median_interval
from parallel_fixedram.experiments.stopping import Budget, Until, parse_budget, parse_until, wants_more

HEAD = 'name = "s"\nquestion = "Why \\"?"\nrepeats = 2\nwarm_up = 0\n'
MIXED = """
[[case]]
way = ["ours", "fio"]
guest = "dense,size=1MiB"
channels = [1, 2]
[[case]]
way = "scan"
guest = "dense,size=1MiB"
[[case]]
way = "pause-floor"
qemu = { size = "64MiB", dirty_rate = "1MiB", ram = ["memfd", "private"] }
"""


def scenario(tables=MIXED, head=HEAD):
    return parse_scenario(head + tables, "s.toml")


@pytest.mark.parametrize("name", shipped())
def test_a_scenario_as_text_is_the_same_scenario(name):
    found = load_scenario(shipped()[name])
    again = parse_scenario(with_text(found).text, "again")
    assert (again.cases, again.question, again.repeats, again.warm_up) == (
        found.cases, found.question, found.repeats, found.warm_up,
    )  # fmt: skip


def test_texts_and_rules_survive_too():
    found = scenario(head=HEAD + 'until = "interval < 5 %"\nbudget = "1 h"\n')
    again = parse_scenario(with_text(found).text, "again")
    assert (again.question, again.until, again.budget) == ('Why "?', "interval < 5 %", "1 h")
    assert tomllib.loads(with_text(found).text)["case"][-1]["qemu"] == {
        "size": 64 << 20, "ram": "private", "dirty_rate": 1 << 20,
    }  # fmt: skip


def test_cases_are_taken_by_a_part_of_their_name_or_by_wildcards():
    found = scenario()
    assert [each.way for each in selected(found, ["scan", "fio*channels=2"]).cases] == ["fio", "scan"]
    assert selected(found, []) is found
    assert parse_scenario(selected(found, ["scan"]).text, "again").cases == selected(found, ["scan"]).cases
    with pytest.raises(RequestError, match="--case qemu-file: no case of 's' matches"):
        selected(found, ["scan", "qemu-file"])


def test_values_replace_those_of_every_case_that_knows_the_parameter():
    found = with_overrides(scenario(), parse_overrides(["channels=1,4", "qemu.size=128MiB", "qemu.ram=memfd"]))
    assert [each.id for each in found.cases] == [
        "ours guest=dense,size=1MiB channels=1",
        "ours guest=dense,size=1MiB channels=4",
        "fio guest=dense,size=1MiB channels=1",
        "fio guest=dense,size=1MiB channels=4",
        "scan guest=dense,size=1MiB",
        "pause-floor qemu=size=128MiB,data=0.5,ram=memfd,dirty_rate=1MiB",
    ]
    guests = with_overrides(scenario(), parse_overrides(["guest=zero,size=1MiB", "guest=random,size=2MiB"]))
    assert {each.guest for each in guests.cases} == {"zero,size=1MiB", "random,size=2MiB", None}
    assert parse_scenario(guests.text, "again").cases == guests.cases


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("way=ours", "'way' is not a parameter"),
        ("qemu=x", "'qemu' is not a parameter"),
        ("channels", "a value is missing"),
        ("channels=1,", "a value is missing"),
        ("channels=0", "-L, ours, channels: 0: expected a whole number"),
        ("channels=[1]", "expected a whole number"),
        ("dirty=0.5", "-L, ours, dirty: needs guest = 'dense"),
        ("shared=true", "-L shared: no case of 's' has it"),
        ("qemu.size=1MiB", "-L, pause-floor, qemu, size"),
    ],
)
def test_a_wrong_value_is_said_to_be_wrong(text, why):
    with pytest.raises(RequestError, match=why.replace("[", "\\[")):
        with_overrides(scenario(), parse_overrides([text]))


@pytest.mark.parametrize("text", ["interval < 5 %", "interval<5%", "interval of total < 5.0 %"])
def test_a_rule_says_how_precise_a_time_is_to_be(text):
    assert parse_until(text) == Until(metric=Metric.TOTAL, share=0.05)


@pytest.mark.parametrize("text", ["", "5 %", "interval < 0 %", "interval < 100 %", "interval of x < 5 %", 5, None])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(RequestError, match="expected 'interval < 5 %'"):
        parse_until(text)


def test_a_budget_is_a_time():
    assert [parse_budget(text) for text in ("90 s", "1.5min", "2 h")] == [90, 90, 7200]
    for text in ("", "0 s", "5", "-1 s", "1 d", 5):
        with pytest.raises(RequestError, match="expected a time such as"):
            parse_budget(text)


def test_the_interval_of_a_median_lies_between_two_samples():
    assert median_interval([5, 1, 4, 2, 3]) is None
    assert median_interval([6, 5, 1, 4, 2, 3]) == (1, 6)
    assert median_interval(range(20)) == (5, 14)


def test_rounds_go_on_until_every_case_is_precise_or_ten_times_as_many_are_made():
    until = parse_until("interval < 5 %")
    steady, wild = case("a", [1, 1, 1, 1, 1, 1.01]), case("b", [1, 2, 1, 2, 1, 2])
    few = case("c", [1, 1, 1, 1, 1])
    assert not wants_more(until, 6, [steady], 6)
    assert wants_more(until, 6, [steady, wild], 6)
    assert wants_more(until, 6, [few], 6)
    assert not wants_more(until, 6, [wild], 60)
    assert not wants_more(None, 6, [wild], 6)
    assert not wants_more(parse_until("interval of pause < 5 %"), 6, [wild], 6), "it does not tell that time"


def test_a_budget_lasts_while_a_round_like_the_last_one_fits():
    budget = Budget(10.0)
    assert budget.lasts
    budget.spend(4)
    assert budget.lasts
    budget.spend(4)
    assert not budget.lasts
    assert Budget(None).lasts


SCANS = '[[case]]\nway = ["scan", "copy"]\nguest = ["zero,size=1MiB", "dense,size=1MiB"]\n'


def numbers(run_set):
    return [[sample.number for sample in each.samples] for each in run_set.cases]


def test_a_run_makes_rounds_until_the_rule_is_content_and_goes_on_there(tmp_path, monkeypatch):
    enough = [5]
    monkeypatch.setattr(stopping.Until, "reached", lambda _self, found: len(found.samples) >= enough[0])
    found, output = scenario(SCANS, HEAD + 'until = "interval < 5 %"\n'), str(tmp_path / "r.json")
    told = []
    progress = lambda done, total, _left, _what: told.append((done, total))  # noqa: E731
    run_set = run_scenario(found, folder=str(tmp_path), output=output, progress=progress)
    assert numbers(run_set) == [[0, 1, 2, 3, 4]] * 4
    assert told[-1] == (19, 20)
    assert run_set.scenario.until == "interval < 5 %"
    enough[0] = 6
    assert numbers(run_scenario(found, folder=str(tmp_path), output=output, resume=True)) == [[0, 1, 2, 3, 4, 5]] * 4
    enough[0] = 1000
    assert [len(each) for each in numbers(run_scenario(found, folder=str(tmp_path), output=output, resume=True))] == [
        20
    ] * 4


def test_without_time_each_case_is_run_once(tmp_path):
    found = scenario(SCANS, HEAD + 'budget = "0.001 s"\n')
    run_set = run_scenario(found, folder=str(tmp_path), output=str(tmp_path / "r.json"))
    assert numbers(run_set) == [[0]] * 4
    assert run_set.finished


def test_the_command_takes_all_of_it(tmp_path):
    (tmp_path / "s.toml").write_text(HEAD + MIXED)
    options = ("--case", "scan", "-L", "guest=zero,size=1MiB", "--budget", "1 h", "--until", "interval < 50 %")
    shown = done(call("bench", "run", tmp_path / "s.toml", *options, "--dry-run")).out
    assert "scan guest=zero,size=1MiB\n" in shown
    assert "more of them until interval < 50 %\n" in shown
    assert "fewer of them if they do not fit into 1 h\n" in shown
    done(call("bench", "run", tmp_path / "s.toml", *options[:4], "--folder", tmp_path, "--output", tmp_path / "r.json"))
    assert [each.id for each in results.load(str(tmp_path / "r.json")).cases] == ["scan guest=zero,size=1MiB"]
    refused(call("bench", "run", "smoke", "--until", "soon"), 2, "'soon': expected 'interval < 5 %'")
    refused(call("bench", "run", "smoke", "--budget", "soon"), 2, "'soon': expected a time such as")
