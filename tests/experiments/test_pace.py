"""How long things take: guessed from what there is to do, corrected by what was done, each kind by itself."""

import pytest

from parallel_fixedram.experiments import pace
from parallel_fixedram.experiments.pace import Guess, Pace
from parallel_fixedram.experiments.planning import Group, make_plan, runs
from parallel_fixedram.experiments.scenario import parse_scenario
from parallel_fixedram.host import user_cache


def case_of(table):
    text = f'name = "s"\nquestion = "Why?"\nrepeats = 3\n[[case]]\n{table}'
    (case,) = parse_scenario(text, "s.toml").cases
    return case


def seconds(table):
    return pace.of_run(case_of(table)).seconds


def group_seconds(table, file_system="folder"):
    return pace.of_group(Group(source="", file_system=file_system, cases=(case_of(table),))).seconds


SCAN = 'way = "scan"\nguest = "dense,size=1GiB"'
OURS = 'way = "ours"\nguest = "dense,size=1GiB"'


@pytest.mark.parametrize("more", ['cache = "drop"', "calibrate = true", "rounds = 4"])
def test_a_run_takes_longer_for_what_is_done_besides(more):
    assert seconds(f"{OURS}\n{more}") > seconds(OURS) + 0.2


def test_a_run_takes_longer_the_more_there_is_to_write():
    assert seconds(OURS) > seconds(OURS.replace("1GiB", "256MiB")) + 1


def test_setting_up_counts_the_guest_the_file_system_and_its_first_calibration():
    plain = group_seconds(SCAN)
    assert group_seconds(SCAN, "xfs") > plain + 1
    assert group_seconds(OURS) > plain + 1
    assert group_seconds(SCAN.replace("1GiB", "4GiB")) > plain + 1


def test_a_guest_of_its_own_is_booted_in_each_run_and_not_before():
    qemu = 'way = "ours"\nqemu = {size = "1GiB", data = 0.5}'
    fresh = qemu.replace("}", ", fresh = true}")
    assert seconds(fresh) > seconds(qemu) + 1
    assert group_seconds(fresh) < group_seconds(qemu) - 1


def test_all_of_it_is_every_run_and_every_group():
    head = 'name = "s"\nquestion = "Why?"\nrepeats = 3\nwarm_up = 2\n'
    text = f"{head}[[case]]\n{OURS}\nchannels = [1, 2]\n[[case]]\n{SCAN}"
    scenario = parse_scenario(text, "s.toml")
    plan = make_plan(scenario.cases)
    assert (
        len(list(pace.of_all(plan, scenario)))
        == runs(plan, scenario) + len(plan.groups)
        == 3 * 5 + 2 + len(plan.groups)
    )


def test_what_took_twice_as_long_is_expected_to_again_and_others_too_until_they_are_known():
    known = Pace()
    a, b = Guess(kind="a", seconds=1.0), Guess(kind="b", seconds=3.0)
    assert known.seconds([a, b]) == 4
    known.learn(a, 2.0)
    assert known.seconds([a, b]) == 8
    known.learn(b, 3.0)
    assert known.seconds([a]) == pytest.approx(2)
    assert known.seconds([b]) == pytest.approx(3)


def test_what_happened_lately_counts_most():
    known, a = Pace(), Guess(kind="a", seconds=1.0)
    for _ in range(100):
        known.learn(a, 10.0)
    for _ in range(30):
        known.learn(a, 1.0)
    assert known.seconds([a]) < 1.5


def test_the_pace_is_kept_for_the_next_command():
    known, a = Pace(), Guess(kind="a", seconds=1.0)
    known.learn(a, 7.0)
    known.keep()
    assert Pace.kept().seconds([a]) == 7


@pytest.mark.parametrize("value", [None, 1, [1], [1, 2, 3], [0, 1], ["1", 1], [1, -1], [1e300, 1]])
def test_what_cannot_be_reckoned_with_is_forgotten(value):
    user_cache.write("bench.json", {"a": value, "b": [1.0, 3.0]})
    assert Pace.kept().seconds([Guess(kind="b", seconds=1.0)]) == 3
    assert Pace.kept().seconds([Guess(kind="a", seconds=1.0)]) == 3
