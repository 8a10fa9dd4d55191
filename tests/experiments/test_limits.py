"""How far ours is from what cannot be faster, where that was measured in the same rounds."""

import pytest
from support.run_sets import case, of_scenario, run_set

from parallel_fixedram.experiments import report
from parallel_fixedram.experiments.limits import limits

SCENARIO = """
name = "limits"
question = "How far?"
[[case]]
way = ["ours", "fio"]
guest = "dense,size=1GiB"
channels = 2
direct_io = ["on", "off"]
[[case]]
way = "scan"
guest = "dense,size=1GiB"
[[case]]
way = "fio"
guest = "dense,size=1GiB"
file_system = "tmpfs"
[[case]]
way = ["ours", "pause-floor"]
qemu = { size = "1GiB", dirty_rate = "1MiB" }
[[case]]
way = "ours"
guest = "dense,size=1GiB"
dirty = 0.5
"""


def made(each, number):
    """In each round everything takes longer by the same factor; buffered fio is faster than direct, tmpfs fastest."""
    drift = 1 + number / 10
    total = {"ours": 1.2, "scan": 0.3, "fio": 1.0 if each.direct_io == "off" else 1.1, "pause-floor": 0.01}[each.way]
    if each.file_system == "tmpfs":
        total = 0.1
    seconds = {}
    if each.way == "ours":
        seconds = {"phases": {"scan": 0.18 * drift}, "pause": 0.015 * drift if each.qemu else None}
    elif each.way == "pause-floor":
        seconds = {"pause": total * drift}
    return {"total": total * drift, "seconds": seconds}


def test_each_phase_is_held_against_the_fastest_limit_of_its_guest_and_file_system_in_the_same_rounds():
    found = limits(of_scenario(SCENARIO, made))
    told = [(each.case.partition(" ")[2], each.phase, each.limit.split()[0], each.ratio.value) for each in found]
    dense, qemu = "guest=dense,size=1GiB channels=2", "qemu=size=1024MiB,data=0.5,ram=memfd,dirty_rate=1MiB channels=1"
    assert told == [
        (f"{dense} direct_io=on", "to stable storage", "fio", pytest.approx(1.2)),
        (f"{dense} direct_io=on", "reading RAM", "scan", pytest.approx(0.18 / 0.15)),
        (f"{dense} direct_io=off", "to stable storage", "fio", pytest.approx(1.2)),
        (f"{dense} direct_io=off", "reading RAM", "scan", pytest.approx(0.18 / 0.15)),
        (qemu, "pause", "pause-floor", pytest.approx(1.5)),
    ]
    assert all(each.ratio.low == pytest.approx(each.ratio.value) for each in found), "drift is in both"


def test_without_limits_there_is_no_table():
    alone = run_set(case("ours", [1.0] * 7))
    assert limits(alone) == []
    assert "the limit" not in report.page([("x", alone)], with_pictures=False)
    page = report.page([("x", of_scenario(SCENARIO, made))], with_pictures=False)
    assert page.count("<td>pause</td>") == 1
    assert "<td>1.50 (1.50 to 1.50)</td>" in page
