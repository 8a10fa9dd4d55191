"""Whether a host is fit for measurements: made-up hosts, and what is said about each."""

from dataclasses import replace

import pytest
from support.cli import call, refused
from support.run_sets import case, run_set

from parallel_fixedram.core.reports.doctor import Finding, Verdict
from parallel_fixedram.experiments import conditions, counters, report, results
from parallel_fixedram.experiments.conditions import Needs, look, noisy
from parallel_fixedram.experiments.results import Sitting
from parallel_fixedram.experiments.runner import run_scenario
from parallel_fixedram.experiments.scenario import parse_scenario

QUIET = {
    "proc/stat": "cpu 100 0 50 1000 20 0 5 3 0 0\n",
    "proc/vmstat": "pswpin 7\npswpout 8\n",
    "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\nDirty: 100 kB\nWriteback: 0 kB\n",
    "proc/sys/vm/dirty_ratio": "20\n",
    "proc/sys/vm/dirty_bytes": "0\n",
    "proc/sys/vm/dirty_background_ratio": "10\n",
    "proc/sys/vm/dirty_background_bytes": "0\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [madvise] never\n",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size advise [never] deny force\n",
}
GROUPS = {
    "cgroup": (
        "cpu,cpuacct",
        {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"},
        "throttled_time {}000000000",
    ),
    "cgroup2": ("", {"cpu.max": "50000 100000"}, "throttled_usec {}000000"),
}


def host(folder, changes=None):
    """A made-up host; what is None is not there."""
    for name, text in {**QUIET, **(changes or {})}.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return str(folder)


def in_a_group(folder, kind, *, limited=True, throttled=3):
    """The files of a host whose processes are in a control group of that version that has half a processor."""
    controllers, limit, stat = GROUPS[kind]
    point = folder / "groups"
    group = {f"groups/a/{name}": text + "\n" for name, text in limit.items()} if limited else {}
    return {
        "proc/self/mountinfo": f"31 23 0:28 / {point} rw - {kind} {kind} rw,{controllers}\n",
        "proc/self/cgroup": f"4:{controllers}:/a\n" if controllers else "0::/a\n",
        **group,
        "groups/a/cpu.stat": f"nr_periods 9\n{stat.format(throttled)}\n",
        "groups/cpu.stat": "nr_periods 9\n",
        "groups/cpu.max": "max 100000\n",
    }


def verdicts(folder, changes=None, **needs):
    return {each.what: each for each in look(str(folder), Needs(**needs), root=host(folder, changes), seconds=0)}


def test_nothing_is_found_wrong_with_a_quiet_host(tmp_path):
    found = verdicts(tmp_path)
    del found["free space"]  # which is that of the folder
    assert {each.verdict for each in found.values()} == {Verdict.OK}
    assert len(found) == 10


@pytest.mark.parametrize(
    ("what", "changes", "detail"),
    [
        (
            "governor",
            {"sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n"},
            "performance on 1, powersave",
        ),
        ("turbo", {"sys/devices/system/cpu/intel_pstate/no_turbo": "0\n"}, "on"),
        (
            "turbo",
            {"sys/devices/system/cpu/intel_pstate/no_turbo": None, "sys/devices/system/cpu/cpufreq/boost": "1\n"},
            "on",
        ),
        (
            "huge pages",
            {"sys/kernel/mm/transparent_hugepage/defrag": "[always] madvise never\n"},
            "enabled madvise, defrag always",
        ),
        ("memory", {"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 400000 kB\n"}, "391 MiB of 8.0 GiB"),
        ("unwritten", {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 9 kB\nDirty: 80000 kB\nWriteback: 1 kB\n"}, "78"),
    ],
)
def test_what_disturbs_is_named_with_what_to_do(tmp_path, what, changes, detail):
    found = verdicts(tmp_path, changes)[what]
    assert found.verdict is Verdict.NOISY
    assert detail in found.detail
    assert found.how


def test_what_a_host_does_not_show_is_absent_and_no_noise(tmp_path):
    hidden = {name: None for name in QUIET if name.startswith("sys/")}
    found = verdicts(tmp_path, hidden)
    assert [name for name, each in found.items() if each.verdict is Verdict.ABSENT] == [
        "governor",
        "turbo",
        "huge pages",
    ]


def test_what_a_run_needs_has_to_be_there_twice_and_is_refused_where_it_does_not_fit(tmp_path):
    assert verdicts(tmp_path, memory=3 << 30)["memory"].verdict is Verdict.OK
    assert verdicts(tmp_path, memory=5 << 30)["memory"].verdict is Verdict.NOISY
    assert verdicts(tmp_path, memory=9 << 30)["memory"].verdict is Verdict.REFUSED
    assert conditions.free_space(10, 100, 3).verdict is Verdict.OK
    assert conditions.free_space(10, 100, 6).verdict is Verdict.NOISY
    assert conditions.free_space(10, 100, 11).verdict is Verdict.REFUSED
    assert "writers wait from 1.5 GiB on" in verdicts(tmp_path)["dirty limits"].detail
    assert verdicts(tmp_path, file=2 << 30)["dirty limits"].verdict is Verdict.NOISY
    absolute = {"proc/sys/vm/dirty_bytes": "4294967296"}
    assert verdicts(tmp_path, absolute, file=2 << 30)["dirty limits"].verdict is Verdict.OK


@pytest.mark.parametrize("kind", GROUPS)
def test_a_quota_of_a_control_group_is_found_in_either_version(tmp_path, kind):
    found = verdicts(tmp_path, in_a_group(tmp_path, kind))["quota"]
    assert found.verdict is Verdict.NOISY
    assert "0.5 processors" in found.detail
    free = tmp_path / "free"
    assert verdicts(free, in_a_group(free, kind, limited=False))["quota"].verdict is Verdict.OK


@pytest.mark.parametrize("kind", GROUPS)
def test_what_passed_between_two_looks(tmp_path, kind):
    first = counters.read_counters(host(tmp_path / "1", in_a_group(tmp_path / "1", kind)))
    later = {"proc/stat": "cpu 130 0 60 1100 40 0 5 43 0 0\n", "proc/vmstat": "pswpin 9\npswpout 8\n"}
    second = counters.read_counters(host(tmp_path / "2", {**in_a_group(tmp_path / "2", kind, throttled=5), **later}))
    use = counters.between(first, second)
    assert (use.busy, use.stolen, use.swapped_pages) == (40 / 200, 40 / 200, 2)
    assert use.throttled_seconds == pytest.approx(2)
    found = {each.what: each.verdict for each in conditions.used(use, 2)}
    assert found == dict.fromkeys(("other load", "steal time", "swapping"), Verdict.NOISY)


def test_a_counter_that_goes_backwards_is_no_negative_share():
    first = counters.Counters(passed=100, idle=50, stolen=5, throttled_seconds=None, swapped_pages=9)
    use = counters.between(first, replace(first, passed=110, idle=40, stolen=4, swapped_pages=8))
    assert use == counters.Use(busy=1.0, stolen=0.0, throttled_seconds=None, swapped_pages=0)


def test_a_run_warns_first_and_keeps_what_was_found_and_what_happened(tmp_path, host_looks):
    wrong = Finding(what="governor", verdict=Verdict.NOISY, detail="powersave", how="do something")
    right = Finding(what="turbo", verdict=Verdict.OK, detail="off")
    host_looks.findings = [wrong, right]
    text = 'name = "s"\nquestion = "?"\nrepeats = 1\nwarm_up = 0\n[[case]]\nway = "scan"\nguest = "zero,size=1MiB"\n'
    (tmp_path / "s.toml").write_text(text)
    output = str(tmp_path / "r.json")
    said = call("bench", "run", tmp_path / "s.toml", "--folder", tmp_path, "--output", output).err
    assert "noisy: governor: powersave" in said
    assert "turbo" not in said
    [sitting] = results.load(output).sittings
    assert sitting.conditions == (wrong, right)
    assert 0 <= sitting.stolen <= 1
    scenario = parse_scenario(text.replace("repeats = 1", "repeats = 2"), "s.toml")
    results.store(
        replace(results.load(output), scenario=replace(results.load(output).scenario, text=scenario.text)), output
    )
    again = run_scenario(scenario, folder=str(tmp_path), output=output, resume=True)
    assert [each.conditions for each in again.sittings] == [(wrong, right), ()]


def test_the_report_tells_them():
    looked = (Finding(what="steal time", verdict=Verdict.NOISY, detail="7.0% of <it>"),)
    sitting = Sitting(started="2000", conditions=looked, stolen=0.07, throttled_seconds=1.5, swapped_pages=3)
    page = report.page([("x", run_set(case("ours", [1.0]), sittings=(sitting,)))], with_pictures=False)
    for text in ("noisy: 7.0% of &lt;it&gt;", "7.0% of processor time", "1.5 s", "3 pages"):
        assert text in page


def test_the_command_ends_with_1_if_something_disturbs(host_looks):
    quiet = Finding(what="governor", verdict=Verdict.OK, detail="performance on 2")
    host_looks.findings = [quiet]
    found = call("bench", "check")
    assert (found.code, found.err) == (0, "")
    assert found.out == "  ok      governor  performance on 2\nnothing that would disturb was found\n"
    loud = Finding(what="turbo", verdict=Verdict.NOISY, detail="on", how="echo 1")
    host_looks.findings = [quiet, loud]
    found = call("bench", "check", "smoke")
    assert host_looks.needs[-1].file
    assert found.code == 1
    assert found.out.endswith("measurements would suffer from: turbo\n")
    told = call("bench", "check", "smoke", "--json").json
    assert (told["schema"], told["ok"]) == ("parallel_fixedram.bench_check", False)
    assert told["findings"][1] == {"what": "turbo", "verdict": "noisy", "detail": "on", "how": "echo 1"}
    assert noisy([quiet, loud]) == [loud]
    refused(call("bench", "check", "--folder", "/nowhere"), 2, "is not a folder")
