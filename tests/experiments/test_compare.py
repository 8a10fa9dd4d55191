"""Two run sets: what became slower, what cannot be told, and what the command says and ends with."""

import json

import pytest
from support.cli import call, done, refused
from support.run_sets import HOST, VERSIONS, case, run_set, sample

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.experiments import results
from parallel_fixedram.experiments.compare import compare, other_host
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.results import CaseResult
from parallel_fixedram.experiments.statistics import RatioVerdict

STEADY = [1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01]


def times(factor, samples=STEADY):
    return [factor * each for each in samples]


def stored(tmp_path, name, *cases, **fields):
    path = tmp_path / f"{name}.json"
    results.store(run_set(*cases, **fields), str(path))
    return str(path)


@pytest.mark.parametrize(
    ("factor", "verdict", "regression"),
    [
        (1.5, RatioVerdict.SLOWER, True),
        (0.5, RatioVerdict.FASTER, False),
        (1.0, RatioVerdict.CANNOT_TELL, False),
        (1.04, RatioVerdict.SLOWER, False),
    ],
)
def test_a_case_is_slower_faster_or_cannot_be_told(factor, verdict, regression):
    found = compare(run_set(case("ours", STEADY)), run_set(case("ours", times(factor))))
    [each] = found.cases
    assert each.ratio.value == pytest.approx(factor)
    assert each.ratio.verdict is verdict
    assert each.regression is regression


def test_a_regression_needs_the_whole_interval_above_the_threshold():
    wide = [0.5, 1.5, 0.7, 1.3, 1.0, 2.5, 1.2]
    found = compare(run_set(case("ours", STEADY)), run_set(case("ours", times(1.3, wide))))
    assert found.cases[0].ratio.value > 1.05
    assert not found.regressions
    a, b = run_set(case("ours", STEADY)), run_set(case("ours", times(1.5)))
    assert compare(a, b, threshold=1.4).regressions
    assert not compare(a, b, threshold=1.6).regressions


def test_few_samples_are_no_regression_however_slow():
    found = compare(run_set(case("ours", [1, 1, 1])), run_set(case("ours", [9, 9, 9])))
    assert found.cases[0].ratio.verdict is RatioVerdict.CANNOT_TELL
    assert not found.regressions


def test_cases_of_one_set_only_are_listed():
    first = run_set(case("ours", STEADY), case("fio", STEADY))
    second = run_set(case("copy", STEADY), case("ours", STEADY))
    found = compare(first, second)
    assert [each.id for each in found.cases] == ["ours"]
    assert (found.only_in_a, found.only_in_b) == (("fio",), ("copy",))


def test_a_time_that_a_way_cannot_tell_is_not_compared():
    a = run_set(case("ours", STEADY))
    assert compare(a, a, metric=Metric.PAUSE).not_told == ("ours",)
    assert len(compare(a, a, metric=Metric.LAST_WRITE).cases) == 1


def test_a_pause_of_nothing_is_not_compared():
    stood_still = CaseResult(
        id="ours", parameters={"way": "ours"}, samples=tuple(sample(n, 1.0, seconds={"pause": 0.0}) for n in range(7))
    )
    assert compare(run_set(stood_still), run_set(stood_still), metric=Metric.PAUSE).not_told == ("ours",)


def test_another_host_or_scenario_is_named_and_what_always_changes_is_not():
    a = run_set(case("ours", STEADY))
    assert compare(a, a).warnings == ()
    disk = {**HOST["disk"], "model": "other", "free": 5}
    versions = {**VERSIONS, "parallel_fixedram": "9", "qemu": "10.0"}
    b = run_set(
        case("ours", STEADY),
        host={**HOST, "disk": disk, "cpus": 64},
        versions=versions,
        scenario={"text": "x"},
        finished=None,
    )
    assert compare(a, b).warnings == (
        "the scenarios differ, so the two may not have measured the same",
        "the second run set is not finished",
        "host cpus differs: 2 and 64",
        "host disk model differs: 'made up' and 'other'",
        "version qemu differs: None and '10.0'",
    )


def test_the_command_ends_with_1_on_a_regression_only(tmp_path):
    before, after = stored(tmp_path, "a", case("ours", STEADY)), stored(tmp_path, "b", case("ours", times(1.5)))
    found = call("bench", "compare", before, after)
    assert found.code == 1
    assert found.err == ""
    assert "ours: 1.500, 95 % 1." in found.out
    assert "slower, a regression" in found.out
    assert found.out.endswith("1 regression beyond 1.05\n")
    assert done(call("bench", "compare", before, after, "--threshold", "2")).out.endswith("0 regressions beyond 2\n")
    assert "faster" in done(call("bench", "compare", after, before)).out


def test_the_command_lists_what_it_cannot_compare(tmp_path):
    before = stored(tmp_path, "a", case("ours", STEADY), case("fio", STEADY), host={**HOST, "cpus": 4})
    after = stored(tmp_path, "b", case("ours", [1.0]), case("copy", STEADY))
    found = done(call("bench", "compare", before, after, "--force"))
    assert "no interval" in found.out
    assert "cannot tell (1 of at least 5 samples)" in found.out
    assert f"fio: only in {before}\n" in found.out
    assert f"copy: only in {after}\n" in found.out
    assert found.err == "parallel-fixedram: host cpus differs: 4 and 2\n"
    assert (
        "ours: does not tell this time"
        in done(call("bench", "compare", before, after, "--force", "--metric", "pause")).out
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"kernel": "7.0", "load_average": [9.0], "memory": (8 << 30) - (64 << 20), "disk": {"free": 1}}, []),
        ({"cpu_model": None, "physical_cpus": 1}, []),
        ({"cpu_model": "Another"}, ["cpu_model ('Synthetic CPU (no such machine)' and 'Another')"]),
        ({"cpus": 4, "memory": 4 << 30}, ["cpus (2 and 4)", "memory (8589934592 and 4294967296)"]),
    ],
)
def test_a_host_is_its_processors_and_memory_and_is_the_same_after_a_reboot(changes, named):
    assert other_host(run_set(), run_set(host={**HOST, **changes})) == named


def test_results_of_different_hosts_are_compared_only_if_that_is_asked_for(tmp_path):
    before = stored(tmp_path, "a", case("ours", STEADY))
    after = stored(tmp_path, "b", case("ours", STEADY), host={**HOST, "cpus": 4})
    refused(call("bench", "compare", before, after), 2, "are of different hosts: cpus (2 and 4)", "--force")
    assert "0 regressions" in done(call("bench", "compare", before, after, "--force")).out


def test_the_command_says_all_in_json_too(tmp_path):
    before = stored(tmp_path, "a", case("ours", STEADY), case("fio", STEADY))
    after = stored(tmp_path, "b", case("ours", times(1.5)))
    result = call("bench", "compare", before, after, "--metric", "last_write", "--json")
    assert result.code == 1
    found = result.json
    assert found["verb"] == "bench compare"
    assert found["metric"] == "last_write"
    assert found["regressions"] == ["ours"]
    assert found["only_in_a"] == ["fio"]
    low, high = found["cases"][0]["interval"]
    assert 1.4 < low < high < 1.6


@pytest.mark.parametrize("threshold", ["0.9", "x", "nan", "inf", "-1"])
def test_a_threshold_is_a_factor_from_1_on(tmp_path, threshold):
    path = stored(tmp_path, "a", case("ours", STEADY))
    refused(call("bench", "compare", path, path, f"--threshold={threshold}"), 2, "--threshold")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"schema": 2}', "\0", '{"schema": 1, "cases": 5}'])
@pytest.mark.parametrize("verb", ["compare", "report", "pictures", "simulate"])
def test_a_file_that_is_no_run_set_is_said_to_be_none(tmp_path, text, verb):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    options = {"compare": [path], "report": ["--output", tmp_path / "x"], "pictures": ["--folder", tmp_path / "y"]}
    refused(call("bench", verb, path, *options.get(verb, [])), 3, str(path))


def test_a_file_that_is_not_there_is_a_wrong_request(tmp_path):
    path = tmp_path / "nothing.json"
    refused(call("bench", "compare", path, path), 2, f"{str(path)!r} does not exist")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("host",), []),
        (("versions",), None),
        (("cases", 0, "parameters"), "ours"),
        (("cases", 0, "id"), 5),
        (("scenario", "question"), 5),
        (("missing", 0, "why"), None),
    ],
)
def test_facts_of_another_type_are_refused(tmp_path, path, value):
    data = run_set(case("ours", STEADY)).to_json()
    place = data
    for each in path[:-1]:
        place = place[each]
    place[path[-1]] = value
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(data))
    with pytest.raises(FormatError, match="Expected"):
        results.load(str(file))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("seconds", "total"), "fast"),
        (("seconds", "total"), None),
        (("seconds", "total"), True),
        (("seconds", "pause"), -1),
        (("seconds", "last_write"), float("nan")),
        (("seconds", "phases"), {"scan": []}),
        (("seconds", "phases"), 5),
        (("bytes", "ram"), None),
        (("bytes", "file"), "big"),
    ],
)
def test_numbers_that_are_none_are_refused_with_their_place(tmp_path, place, value):
    data = run_set(case("ours", STEADY)).to_json()
    data["cases"][0]["samples"][3][place[0]][place[1]] = value
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError) as raised:
        results.load(str(path))
    assert f"$.cases[0].samples[3].{place[0]}" in raised.value.message
