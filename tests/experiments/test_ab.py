"""A against B: turns, pairs, verdicts; revisions that are unpacked and installed; and what the command says."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from support.cli import call, done, refused
from support.qemu_tools import require_tool
from support.run_sets import case, run_set

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.experiments import ab, builds, results, run_facts, tools
from parallel_fixedram.experiments.builds import Build, Revision, build, find_revision
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.results import RunSet
from parallel_fixedram.experiments.scenario import parse_scenario

SCENARIO = """
name = "s"
question = "?"
repeats = 9
warm_up = 0
until = "interval < 5 %"
[[case]]
way = "scan"
guest = "zero,size=1MiB"
"""


def turn(times, log, name):
    """Turns that take so long."""
    left = iter(times)

    def take(number):
        log.append((name, number))
        return run_set(case("ours", [next(left)]), case("fio", [1.0]), order=("ours", "fio"), commit=name)

    return take


def measured(tmp_path, a, b, rounds=7):
    log = []
    outputs = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    turns = [turn([9.0, *a], log, "a"), turn([9.0, *b], log, "b")]
    return ab.run_in_turn(turns, outputs, rounds=rounds), outputs, log


def test_both_have_a_turn_in_each_round_in_an_order_that_is_shuffled_and_the_first_round_does_not_count(tmp_path):
    (first, second), outputs, log = measured(tmp_path, [1.0] * 7, [2.0] * 7)
    rounds = (
        list(itertools.batched(log, 2))
        if hasattr(itertools, "batched")
        else list(zip(log[::2], log[1::2], strict=True))
    )
    assert [{name for name, _ in each} for each in rounds] == [{"a", "b"}] * 8
    assert [each[0][1] for each in rounds] == list(range(-1, 7))
    assert {each[0][0] for each in rounds} == {"a", "b"}
    assert [sample.number for sample in first.case("ours").samples] == list(range(7))
    assert [sample.seconds.total for sample in second.case("ours").samples] == [2.0] * 7
    assert (first.commit, second.commit, first.scenario.repeats) == ("a", "b", 7)
    assert [results.load(path) for path in outputs] == [first, second]


def test_what_drifts_hits_both_of_a_round(tmp_path):
    drift = [1.0, 1.5, 2.0, 2.6, 1.2, 3.0, 1.1]
    (first, second), _, _ = measured(tmp_path, drift, [1.1 * each for each in drift])
    ours, fio = ab.verdicts(first, second, Metric.TOTAL)
    assert ours.ratio.value == pytest.approx(1.1)
    assert (ours.ratio.low, ours.ratio.high) == (pytest.approx(1.1), pytest.approx(1.1))
    assert (str(ours.ratio.verdict), str(fio.ratio.verdict)) == ("slower", "cannot tell")
    assert ab.verdicts(first, second, Metric.PAUSE) == []


def test_the_noise_floor_is_the_largest_factor_that_an_interval_of_the_same_holds(tmp_path):
    (first, second), _, _ = measured(tmp_path, [1.0] * 7, [1.0, 1.1, 0.8, 1.0, 1.0, 1.0, 1.0])
    assert ab.noise_floor(ab.verdicts(first, second, Metric.TOTAL)) == pytest.approx(1 / 0.8)
    assert ab.noise_floor(ab.verdicts(*measured(tmp_path, [1.0], [1.1], rounds=1)[0], Metric.TOTAL)) is None


def test_a_turn_that_fails_leaves_what_was_measured(tmp_path):
    with pytest.raises(StopIteration):
        measured(tmp_path, [1.0] * 4, [1.0] * 4)
    assert len(results.load(str(tmp_path / "a.json")).case("ours").samples) == 4


def test_a_case_that_one_turn_could_not_run_is_paired_where_both_have_it(tmp_path):
    both, without = run_set(case("ours", [1.0]), case("fio", [1.0])), run_set(case("ours", [1.0]))
    sides = [lambda _: both, lambda number: both if number == 2 else without]
    outputs = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    found = ab.verdicts(*ab.run_in_turn(sides, outputs, rounds=4, warm_up=0), Metric.TOTAL)
    assert {each.id: each.ratio.samples for each in found} == {"ours": (4, 4), "fio": (1, 1)}


def test_a_revision_runs_the_scenario_once_without_rules_it_may_not_know(tmp_path, monkeypatch):
    """The real thing, by the program that runs now."""
    here = build(find_revision("."), str(tmp_path))
    assert here.python == sys.executable
    scenario = parse_scenario(SCENARIO, "s.toml")
    found = ab.RevisionTurn(here, scenario, str(tmp_path / "scratch"), str(tmp_path))(0)
    assert [len(each.samples) for each in found.cases] == [1]
    assert "until" not in found.scenario.text
    assert found.commit == run_facts.commit()
    refusing = replace(here, python="/bin/false")
    with pytest.raises(HostError, match=r"revision '\.': false failed with code 1"):
        ab.RevisionTurn(refusing, scenario, str(tmp_path / "scratch"), str(tmp_path))(0)


class Checkout:
    """A repository with a package in it and two commits; what venv and pip are told is noted instead of done.

    Attributes:
        root: its folder.
        told: the commands.
        installed: whether the package that runs is a copy of it, which knows of no repository.
        network: whether there is any.
    """

    def __init__(self, root):
        self.root, self.told, self.installed, self.network = root, [], False, True
        (root / "package").mkdir(parents=True)
        self.git("init", "--quiet")
        for text in ("old", "new"):
            (root / "package" / "__init__.py").write_text(text)
            self.git("add", ".")
            self.git("commit", "--quiet", "-m", text)
        self._run = tools.run

    def git(self, *arguments):
        person = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", self.root, *person, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit(self):
        return None if self.installed else self.git("rev-parse", "HEAD").strip()

    def run(self, command):
        if command[0] == "git":
            return self._run(command)
        self.told.append(command)
        if not self.network:
            raise HostError("pip failed with code 1: no network")
        return None


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    require_tool("git")
    made = Checkout(tmp_path / "checkout")
    monkeypatch.setattr(builds, "_PACKAGE", str(made.root / "package"))
    monkeypatch.setattr(run_facts, "commit", made.commit)
    monkeypatch.setattr(tools, "run", made.run)
    return made


def test_a_revision_is_unpacked_and_installed_once_and_the_checkout_is_left_alone(checkout, tmp_path):
    told, root = checkout.told, checkout.root
    before = sorted(str(path) for path in root.rglob("*"))
    old = find_revision("HEAD~1")
    assert old == Revision(name="HEAD~1", commit=checkout.git("rev-parse", "HEAD~1").strip())
    found = build(old, str(tmp_path / "builds"))
    source = tmp_path / "builds" / old.commit / "source"
    assert (source / "package" / "__init__.py").read_text() == "old"
    assert found.python == str(tmp_path / "builds" / old.commit / "venv" / "bin" / "python")
    assert [each[1:3] for each in told] == [["-m", "venv"], ["-m", "pip"]]
    assert build(old, str(tmp_path / "builds")) == found
    assert len(told) == 2
    assert sorted(str(path) for path in root.rglob("*")) == before


def test_an_installation_that_was_not_finished_begins_again(checkout, tmp_path):
    head = find_revision("HEAD")
    half = tmp_path / "builds" / head.commit / "venv"
    half.mkdir(parents=True)
    (half / "rubbish").touch()
    build(head, str(tmp_path / "builds"))
    assert len(checkout.told) == 2
    assert not (half / "rubbish").exists()

    checkout.network = False
    with pytest.raises(HostError, match=r"cannot install revision 'HEAD~1': .*no network"):
        build(find_revision("HEAD~1"), str(tmp_path / "builds"))


def test_what_is_no_revision_is_refused(checkout):
    for name in ("nothing", "--help", ""):
        with pytest.raises(RequestError, match="is not a revision of this checkout"):
            find_revision(name)
    checkout.installed = True
    with pytest.raises(RequestError, match="this is an installed copy"):
        find_revision("HEAD")


def stand_in(monkeypatch, factor):
    """Turns that take no time: revisions are not installed, and B takes so many times as long as A."""

    def find(name):
        return Revision(name=name, commit=name * 40)

    monkeypatch.setattr(builds, "find_revision", find)
    monkeypatch.setattr(builds, "build", lambda revision, _folder: Build(revision=revision, python="python"))

    def take(self, number) -> RunSet:
        name = self._build.revision.name
        return run_set(
            case("ours", [(1 + number / 100) * (factor if name == "b" else 1)]), commit=name * 40, missing=()
        )

    monkeypatch.setattr(ab.RevisionTurn, "__call__", take)


def test_the_command_says_by_what_factor_and_how_sure(tmp_path, monkeypatch):
    stand_in(monkeypatch, 1.5)
    (tmp_path / "s.toml").write_text(SCENARIO)
    options = ("--folder", tmp_path, "--results", tmp_path / "r")
    found = call("bench", "ab", "a", "b", tmp_path / "s.toml", *options)
    assert found.code == 1
    assert "  ours: 1.500, 95 % 1.500 to 1.500, 1030 and 1545 ms: slower, a regression\n" in found.out
    assert "s: 15 of 16 runs done" in found.err
    assert sorted(os.listdir(tmp_path / "r")) == ["s.a.json", "s.b.json"]
    refused(call("bench", "ab", "a", "b", tmp_path / "s.toml", *options), 2, "s.a.json' exists", "--overwrite")
    same = call("bench", "ab", "a", "a", tmp_path / "s.toml", *options, "--overwrite")
    assert "A and B are the same: the noise floor is a factor of 1.000\n" in done(same).out
    told = call("bench", "ab", "a", "b", tmp_path / "s.toml", *options, "--overwrite", "--json").json
    assert (told["schema"], told["a"], told["rounds"]) == ("parallel_fixedram.bench_ab", "a", 7)
    [entry] = told["scenarios"]
    assert (entry["same"], entry["commits"]) == (False, ["a" * 40, "b" * 40])
    assert entry["cases"][0]["interval"] == pytest.approx([1.5, 1.5])


def test_two_commands_are_timed_and_one_that_fails_ends_it(tmp_path):
    options = ("--rounds", "1", "--folder", tmp_path, "--results", tmp_path / "r")
    said = done(call("bench", "ab", "--command", "/bin/true", "--command", "/bin/sh -c 'exit 0'", *options)).out
    assert "  command: " in said
    assert "no interval" in said
    assert results.load(str(tmp_path / "r" / "command.b.json")).cases[0].parameters["command"] == "/bin/sh -c 'exit 0'"
    wrong = call("bench", "ab", "--command", "/bin/true", "--command", "/bin/false", *options, "--overwrite")
    assert (wrong.code, wrong.out) == (5, "")
    assert wrong.err.endswith("error: false failed with code 1: it said nothing\n")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["a", "b"],
        ["--command", "x"],
        ["--command", "x", "--command", "y", "a"],
        ["a", "b", "smoke", "smoke"],
        ["--command", "x", "--command", "'"],
        ["--command", "x", "--command", " "],
    ],
)
def test_what_does_not_go_together_is_refused(argv, tmp_path):
    refused(call("bench", "ab", *argv, "--results", tmp_path), 2, "")
    assert os.listdir(tmp_path) == []
