"""Carrying out scenarios: what is run, in which order, what is stored, and what is left behind."""

import contextlib
import json
import os
import re
import signal
import termios
from pathlib import Path

import psutil
import pytest
from support.cli import Running, call, done, refused
from support.qemu_tools import require_qemu

from parallel_fixedram import clean
from parallel_fixedram.cli.bench import COMMANDS
from parallel_fixedram.core.errors import ContentsDiffer, HostError, RequestError
from parallel_fixedram.experiments import planning, results
from parallel_fixedram.experiments.guest_work import STEP_SECONDS
from parallel_fixedram.experiments.runner import run_scenario
from parallel_fixedram.experiments.scenario import parse_scenario, shipped
from parallel_fixedram.experiments.ways import boots, guest_look
from parallel_fixedram.experiments.ways.boots import Restore
from parallel_fixedram.experiments.ways.fresh import Naive, Ours
from parallel_fixedram.host import user_cache
from parallel_fixedram.image.image import open_image

STREAMS = ("qemu-file", "qemu-background-snapshot")
QUICK = 'way = ["scan", "page-by-page"]\nguest = ["random,size=2MiB", "zero,size=2MiB"]'


def scenario(*tables, repeats=2, warm_up=1):
    head = f'name = "s"\nquestion = "Why?"\nrepeats = {repeats}\nwarm_up = {warm_up}\n'
    return parse_scenario(head + "".join(f"[[case]]\n{table}\n" for table in tables), "s.toml")


def carry_out(found, folder, **options):
    work = folder / "work"
    work.mkdir(exist_ok=True)
    run_set = run_scenario(found, folder=str(work), output=str(folder / "r.json"), **options)
    assert list(work.iterdir()) == []
    assert results.load(str(folder / "r.json")) == run_set
    return run_set


def numbers(run_set):
    return {case.id: [sample.number for sample in case.samples] for case in run_set.cases}


def test_every_case_of_a_guest_has_its_turn_in_each_round_in_an_order_that_is_shuffled_but_repeatable(tmp_path, synced):
    found = scenario(QUICK, repeats=1)
    run_set = carry_out(found, tmp_path)
    assert len(synced) == len(run_set.order) == 8
    plan = planning.make_plan(found.cases)
    expected = [
        case.id for group in plan.groups for number in (-1, 0) for case in planning.shuffled(group, found.seed, number)
    ]
    assert list(run_set.order) == expected
    assert len(plan.groups) == 2
    assert all(each == [0] for each in numbers(run_set).values())
    assert run_set.finished is not None


def test_rounds_are_shuffled_each_in_its_own_way():
    found = scenario('way = "ours"\nguest = "zero"\nchannels = [1, 2, 3, 4, 5, 6, 7, 8]')
    (group,) = planning.make_plan(found.cases).groups
    orders = {tuple(case.id for case in planning.shuffled(group, 1, number)) for number in range(5)}
    assert len(orders) == 5
    assert {frozenset(order) for order in orders} == {frozenset(case.id for case in group.cases)}


def test_results_are_not_lost_and_not_mixed(tmp_path):
    found = scenario('way = "scan"\nguest = "zero,size=1MiB"', repeats=1, warm_up=0)
    carry_out(found, tmp_path)
    with pytest.raises(RequestError, match="exists"):
        carry_out(found, tmp_path)
    with pytest.raises(RequestError, match="another scenario"):
        carry_out(scenario('way = "copy"\nguest = "zero,size=1MiB"'), tmp_path, resume=True)
    assert numbers(carry_out(found, tmp_path, overwrite=True)) == {"scan guest=zero,size=1MiB": [0]}


def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path):
    found = scenario('way = ["scan", "sequential"]\nguest = "random,size=2MiB"', repeats=3, warm_up=0)
    (tmp_path / "s.toml").write_text(found.text)
    output, folder = tmp_path / "r.json", tmp_path / "work"
    folder.mkdir()
    options = ("--folder", folder, "--output", output)

    def samples():
        with contextlib.suppress(FileNotFoundError):
            return [s for case in json.loads(output.read_text())["cases"] for s in case["samples"]]
        return []

    with Running("bench", "run", tmp_path / "s.toml", *options) as running:
        running.until(lambda: len(samples()) >= 2)
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait()
    assert [(each.kind, each.removed) for each in clean(str(folder), remove=True).found] == [("temporary", True)]
    assert os.listdir(folder) == []
    before = results.load(str(output))
    assert before.finished is None
    assert 2 <= len(samples()) < 6
    done(call("bench", "run", tmp_path / "s.toml", *options, "--resume"))
    after = results.load(str(output))
    assert after.finished is not None
    assert [case.id for case in after.cases] == [case.id for case in before.cases]
    assert all(each == [0, 1, 2] for each in numbers(after).values())
    for case in before.cases:
        assert all(sample in after.case(case.id).samples for sample in case.samples)
    assert after.order[: len(before.order)] == before.order


def test_a_finished_set_is_not_run_again_but_more_samples_can_be_added(tmp_path):
    text = 'way = "scan"\nguest = "random,size=1MiB"'
    first = carry_out(scenario(text, repeats=1, warm_up=0), tmp_path)
    again = carry_out(scenario(text, repeats=1, warm_up=0), tmp_path, resume=True)
    assert (again.cases, again.order) == (first.cases, first.order)
    (tmp_path / "s.toml").write_text(first.scenario.text)
    options = ("--folder", tmp_path / "work", "--output", tmp_path / "r.json", "--resume", "--repeats", "3")
    done(call("bench", tmp_path / "s.toml", *options))
    more = results.load(str(tmp_path / "r.json"))
    assert numbers(more) == {"scan guest=random,size=1MiB": [0, 1, 2]}
    assert more.cases[0].samples[0] == first.cases[0].samples[0]


def test_a_new_ext4_has_a_folder_of_its_own_and_that_is_left_alone(tmp_path):
    found = scenario('way = "sequential"\nguest = "random,size=1MiB"\nfile_system = "ext4"', repeats=1, warm_up=0)
    run_set = carry_out(found, tmp_path)
    if run_set.missing:
        pytest.skip(run_set.missing[0].why)
    assert [len(case.samples) for case in run_set.cases] == [1]


def test_what_is_not_installed_is_named_and_never_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = scenario(
        'way = ["fio", "scan"]\nguest = "random,size=1MiB"',
        'way = ["ours", "qemu-multifd"]\nqemu = {size = "64MiB"}',
        'way = "sequential"\nguest = "random,size=1MiB"\nfile_system = ["xfs", "ext4", "folder"]',
        repeats=1,
        warm_up=0,
    )
    run_set = carry_out(found, tmp_path)
    assert {case.parameters["way"] for case in run_set.cases} == {"scan", "sequential"}
    assert all(len(case.samples) == 1 for case in run_set.cases)
    why = {each.way: each.why for each in run_set.missing}
    assert "fio is not installed: install the package fio" in why["fio"]
    assert "qemu-system-x86_64 is not installed: install the package qemu-system-x86" in why["ours"]
    assert "qemu-system-x86_64 is not installed" in why["qemu-multifd"]
    assert "mkfs" in why["sequential"] or "root" in why["sequential"]
    assert run_set.versions["fio"] is None
    assert run_set.versions["qemu"] is None


def test_a_guest_that_does_not_fit_into_memory_is_missing_and_the_rest_is_run(tmp_path):
    found = scenario('way = "scan"\nguest = ["dense,size=64TiB", "zero,size=1MiB"]', repeats=1, warm_up=0)
    run_set = carry_out(found, tmp_path)
    assert numbers(run_set) == {"scan guest=zero,size=1MiB": [0]}
    (missing,) = run_set.missing
    assert missing.cases == ("scan guest=dense,size=64TiB",)


def test_a_wrong_file_ends_the_runs(tmp_path, monkeypatch):
    def verify(self, run):
        with open(run.path, "r+b") as file:
            file.write(b"x")
        return checked(self, run)

    checked = Naive.verify
    monkeypatch.setattr(Naive, "verify", verify)
    with pytest.raises(ContentsDiffer, match=r"^page-by-page guest=.*: differs from RAM between 0x0 and 0x100000"):
        carry_out(scenario('way = "page-by-page"\nguest = "dense,size=1MiB"'), tmp_path)


@pytest.mark.parametrize("way", ["ours-threads", "page-by-page", "sequential"])
@pytest.mark.parametrize("guest", ["zero,size=2MiB", "random,size=8MiB,fraction=0.3", "dense,size=4MiB,fraction=0.5"])
def test_naive_ways_write_every_page(way, guest, tmp_path):
    run_set = carry_out(scenario(f'way = "{way}"\nguest = "{guest}"', repeats=1, warm_up=0), tmp_path)
    (sample,) = run_set.cases[0].samples
    assert sample.verified == "ram"
    assert sample.bytes.data == sample.bytes.written
    assert 0 < sample.seconds.last_write <= sample.seconds.total <= sample.seconds.wall


def test_ours_is_verified_timed_by_its_own_report_and_watched_once(tmp_path):
    found = scenario('way = "ours"\nguest = "random,size=16MiB"\nchannels = 2\ndirect_io = ["on", "off"]', warm_up=0)
    for case in carry_out(found, tmp_path).cases:
        first, second = case.samples
        assert (first.verified, second.verified) == ("ram", "digests")
        assert first.report is not None
        assert first.seconds.total == first.report["seconds"]["total"]
        assert {"prepare", "scan", "write", "digest", "sync", "publish", "ram"} <= set(first.seconds.phases)
        assert first.seconds.pause is None
        assert first.bytes.data == 8 << 20
        assert case.instrumented is not None
        assert case.instrumented.private_bytes_peak > 1 << 20
        assert sum(size for *_, size in case.instrumented.timeline) >= 8 << 20
        assert all(0 <= start <= end < 60 for _, start, end, _, _ in case.instrumented.timeline)
        assert {worker for worker, *_ in case.instrumented.timeline} <= {0, 1}


def test_a_second_round_of_dirty_pages_is_timed_alone(tmp_path):
    found = scenario(
        'way = "ours"\nguest = "dense,size=16MiB"\ndirty = 0.25\ndirect_io = "on"\ngap_pages = [0, 16]',
        repeats=1,
        warm_up=0,
    )
    without, merged = carry_out(found, tmp_path).cases
    for case in (without, merged):
        (sample,) = case.samples
        rounds = sample.report["rounds"]
        assert [each["dirty_pages"] for each in rounds] == [4096, 1024]
        assert sample.seconds.last_write == rounds[1]["seconds"]
    assert without.samples[0].report["rounds"][1]["gap_pages"] == 0
    assert merged.samples[0].report["rounds"][1]["gap_pages"] > 1000


def test_a_live_save_tells_how_the_file_grew_and_what_a_stream_would_have_taken(tmp_path):
    found = scenario('way = "ours"\nguest = "hot,size=16MiB,rate=64MiB"\nrounds = 3', repeats=1, warm_up=0)
    (sample,) = carry_out(found, tmp_path).cases[0].samples
    assert sample.seconds.pause > 0
    assert [number for number, _ in sample.growth] == [number for number, _ in sample.sequential]
    assert sample.growth[-1][1] == sample.bytes.allocated
    assert sample.sequential[0][1] >= 16 << 20


@pytest.mark.qemu
def test_a_qemu_guest_is_saved_by_us_and_by_itself(tmp_path):
    require_qemu()
    found = scenario(
        'way = ["ours", "qemu-file", "qemu-mapped-ram", "qemu-multifd", "qemu-multifd-direct", '
        '"qemu-background-snapshot"]\n'
        'qemu = {size = "64MiB", data = 0.5}',
        repeats=1,
        warm_up=0,
    )
    run_set = carry_out(found, tmp_path)
    assert len(run_set.cases) + sum(len(each.cases) for each in run_set.missing) == 6
    for case in run_set.cases:
        (sample,) = case.samples
        assert sample.verified == ("loaded" if case.parameters["way"] in STREAMS else "ram")
        assert 0 < sample.seconds.pause <= sample.seconds.total
        assert 32 << 20 <= sample.bytes.data <= 40 << 20


def test_a_file_is_written_once_and_checked_in_each_run(tmp_path):
    found = scenario('way = "verify"\nguest = "random,size=2MiB"\ncache = "keep"', repeats=2, warm_up=0)
    [case] = carry_out(found, tmp_path).cases
    for sample in case.samples:
        assert (sample.verified, sample.seconds.pause) == ("digests", None)
        assert 0 < sample.seconds.total < sample.seconds.wall
        assert sample.bytes.file > 1 << 20


def test_all_ram_of_a_guest_is_where_a_pc_has_it():
    gib = 1 << 30
    assert guest_look.ram_places(gib) == [(0, gib)]
    assert guest_look.ram_places(3 * gib) == [(0, 3 * gib)]
    assert guest_look.ram_places(32 * gib) == [(0, 3 * gib), (4 * gib, 29 * gib)]


@pytest.mark.qemu
def test_guests_are_started_from_a_file_held_against_it_and_ended(tmp_path, monkeypatch):
    require_qemu()
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    found = scenario(
        'way = "restore"\nqemu = {size = "64MiB", data = 0.4}\nshared = true\ntouch = true',
        'way = "clone"\nqemu = {size = "64MiB", data = 0.4}\ncount = 2',
        'way = "qemu-load"\nqemu = {size = "64MiB", data = 0.4}\nchannels = 2',
        repeats=1,
        warm_up=0,
    )
    restored, cloned, loaded = carry_out(found, tmp_path).cases
    qemus = [each for each in psutil.process_iter(["name", "environ"]) if "qemu" in each.info["name"]]
    assert [each for each in qemus if (each.info["environ"] or {}).get("STARTED_BY") == str(tmp_path)] == []
    for case in (restored, cloned, loaded):
        (sample,) = case.samples
        assert sample.verified == "ram"
        assert 0 < sample.seconds.total <= (sample.seconds.wall or sample.seconds.total)
        assert sample.seconds.pause is None
        assert sample.bytes.file > 24 << 20
        assert sample.bytes.guests > 8 << 20
        assert (sample.seconds.first_touch is None) == (case is not restored)
    assert 0 < cloned.samples[0].running[0] <= cloned.samples[0].running[1] <= cloned.samples[0].seconds.total
    assert restored.samples[0].seconds.second_touch > 0
    assert restored.samples[0].seconds.phases["fill"] > 0
    assert cloned.samples[0].seconds.phases["fill"] == 0


@pytest.mark.qemu
def test_a_guest_that_is_not_what_the_file_says_ends_the_runs_and_itself(tmp_path, monkeypatch):
    require_qemu()
    started = []

    def damaged(self, run, file, guests):
        started.extend(pid for _, pid in guests)
        with open(file, "r+b") as damage, open_image(file) as image:
            offset = image.block("m").page_offset(300)
            damage.seek(offset)
            damage.write(b"other")
        looked(self, run, file, guests)

    looked = Restore._look
    monkeypatch.setattr(Restore, "_look", damaged)
    table = 'way = "restore"\nqemu = {size = "64MiB", data = 0.4}\nshared = true'
    with pytest.raises(ContentsDiffer, match=r"^restore .*: a guest started from it: .*m"):
        carry_out(scenario(table, repeats=1, warm_up=0), tmp_path)
    assert started
    assert not any(psutil.pid_exists(pid) for pid in started)


@pytest.mark.qemu
def test_a_fresh_guest_is_one_for_each_run_that_nobody_has_saved_before(tmp_path, monkeypatch):
    require_qemu()
    pids = []
    real = Ours.run
    monkeypatch.setattr(Ours, "run", lambda self, run: (pids.append(run.source.qemu.pid), real(self, run))[1])
    found = scenario('way = "ours"\nqemu = {size = "64MiB", data = 0.1, fresh = true}', warm_up=0)
    (case,) = carry_out(found, tmp_path).cases
    assert len(case.samples) == len(set(pids)) == 2


@pytest.mark.qemu
def test_a_qemu_guest_that_goes_on_dirtying_makes_a_stream_grow_but_not_a_file_of_fixed_offsets(tmp_path):
    require_qemu()
    found = scenario(
        'way = ["qemu-file", "qemu-mapped-ram"]\nqemu = {size = "64MiB", data = 0.5, dirty_rate = "128MiB"}\n'
        "rounds = 4",
        repeats=1,
        warm_up=0,
    )
    stream, fixed = carry_out(found, tmp_path).cases
    assert stream.samples[0].growth[-1][1] > 48 << 20
    assert fixed.samples[0].growth[-1][1] < 40 << 20


@pytest.mark.qemu
@pytest.mark.parametrize("ram", ["memfd", "private"])
def test_a_guest_that_is_watched_gets_nothing_done_while_it_stands_still(tmp_path, monkeypatch, ram):
    require_qemu()
    monkeypatch.chdir(tmp_path)
    guest = f'qemu = {{size = "64MiB", data = 0.5, ram = "{ram}", dirty_rate = "1TiB", watched = true}}'
    Path("s.toml").write_text(scenario(f'way = "qemu-mapped-ram"\n{guest}', repeats=1, warm_up=0).text)
    heads = done(call("bench", "s.toml", "--folder", tmp_path)).out.splitlines()[1]
    assert heads.split()[-4:] == ["lost", "ms", "gap", "ms"]
    [sample] = results.load("bench-results/s.json").cases[0].samples
    seconds = sample.seconds
    assert 0.5 * seconds.pause < seconds.gap
    assert 0.5 * seconds.gap < STEP_SECONDS * sample.work.count(0) + 2 * STEP_SECONDS
    assert sum(sample.work) > 1000


@pytest.mark.qemu
def test_a_guest_that_is_started_and_watched_goes_on_where_the_one_that_was_saved_stood(tmp_path, monkeypatch):
    require_qemu()
    monkeypatch.setattr(boots, "SETTLING_SECONDS", 0.3)
    guest = 'qemu = {size = "64MiB", data = 0.5, dirty_rate = "1TiB", watched = true}'
    found = scenario(f'way = ["clone", "qemu-load"]\n{guest}', repeats=1, warm_up=0)
    for case in carry_out(found, tmp_path).cases:
        (sample,) = case.samples
        start, end = sample.watch.save
        assert sample.watch.run[0] <= start < end < sample.watch.run[1]
        assert sample.watch.pause is None
        assert sample.verified == "loaded"
        assert 0.3 * (end - start) < sample.seconds.gap
        steps = sample.work
        before, after = steps[: int(sample.watch.run[0] / STEP_SECONDS)], steps[int(end / STEP_SECONDS) + 1 :]
        assert sum(before) > 1000
        assert sum(after) > 1000
        assert sample.watch.qemu_cpu_seconds > 0


@pytest.mark.qemu
def test_a_live_migration_is_stopped_by_qemu_at_its_end_and_the_guest_runs_on(tmp_path):
    require_qemu()
    guest = 'qemu = {size = "64MiB", data = 0.4, dirty_rate = "1MiB"}'
    found = scenario(
        f'way = ["qemu-file", "qemu-mapped-ram", "qemu-multifd"]\n{guest}\nlive = true', repeats=2, warm_up=0
    )
    for case in carry_out(found, tmp_path).cases:
        for sample in case.samples:
            assert 0 < sample.seconds.pause < sample.seconds.total
            assert sample.bytes.file > 24 << 20


def test_a_plan_runs_nothing_and_says_what_would_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(scenario(QUICK).text)
    for words in (["bench", "s.toml"], ["bench", "run", "s.toml"]):
        said = done(call(*words, "--dry-run", "--json")).json["plans"][0]
        assert (said["runs"], len(said["cases"]), said["file"]) == (12, 4, "bench-results/s.json")
    assert "scan guest=zero,size=2MiB" in done(call("bench", "s.toml", "--dry-run")).out
    assert os.listdir() == ["s.toml"]


def test_the_table_at_the_end_has_a_line_for_each_case_and_results_go_where_git_does_not_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(scenario('way = ["scan", "copy"]\nguest = "zero,size=1MiB"', warm_up=0).text)
    lines = done(call("bench", "s.toml", "--folder", tmp_path)).out.splitlines()
    assert [line.split()[0] for line in lines] == ["s:", "case", "scan", "copy", "median"]
    assert results.load("bench-results/s.json").finished is not None


def test_where_nobody_watches_each_guest_and_each_run_is_a_line_and_then_the_pace_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(scenario('way = "scan"\nguest = ["zero,size=1MiB", "dense,size=1MiB"]', warm_up=0).text)
    lines = done(call("bench", "s.toml", "--folder", tmp_path, "--results", "mine")).err.splitlines()
    told = [
        re.fullmatch(r"parallel-fixedram: s: (\d) of 4 runs done, about (\d+) s left: (.*)", line) for line in lines
    ]
    assert all(told), lines
    assert [(int(each[1]), each[3]) for each in told] == [
        (0, "guest zero,size=1MiB, folder: starts"),
        (0, "scan guest=zero,size=1MiB"),
        (1, "scan guest=zero,size=1MiB"),
        (2, "guest dense,size=1MiB, folder: starts"),
        (2, "scan guest=dense,size=1MiB"),
        (3, "scan guest=dense,size=1MiB"),
    ]
    assert {"scan, guest", "guest on folder"} <= set(user_cache.read("bench.json"))
    assert results.load("mine/s.json").finished is not None


def on_a_terminal(columns, *argv):
    """What the command says on a terminal of that width until it ends, and the size of the terminal it ended with."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    said = b""
    with Running(*argv, stderr=theirs, env={"TERM": "xterm", "COLUMNS": ""}) as running:
        os.close(theirs)
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 1 << 16):
                said += data
        running.process.wait()
    os.close(ours)
    return said.decode()


def test_a_bar_keeps_to_one_line_of_the_terminal_however_long_the_names_of_cases_are(tmp_path):
    guest = "dense,size=1MiB,seed=12345678901234567890,fraction=0.123456789012345678901234567890123456789"
    (tmp_path / "s.toml").write_text(scenario(f'way = "scan"\nguest = "{guest}"', repeats=1, warm_up=0).text)
    said = on_a_terminal(70, "bench", tmp_path / "s.toml", "--folder", tmp_path, "--output", tmp_path / "r.json")
    shown = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", said)]
    bars = [line for line in shown if line.startswith("s ")]
    assert any("0/1" in line and " left " in line and "…" in line for line in bars), shown
    assert max(map(len, shown)) <= 70
    assert "\x1b[2A" not in said  # it goes up one line at most to draw itself again


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(tmp_path, signum):
    (tmp_path / "s.toml").write_text(scenario('way = "scan"\nguest = "zero,size=1MiB"', repeats=1000).text)
    output = tmp_path / "r.json"
    with Running("bench", tmp_path / "s.toml", "--folder", tmp_path, "--output", output, "--overwrite") as running:
        assert any(line.startswith("parallel-fixedram: s: 0 of 1001 runs done") for line in running.process.stderr)
        running.send(signum)
        ended = running.finish()
    assert ended.code == 128 + signum
    error, hint = ended.err.splitlines()[-2:]
    assert error == f"parallel-fixedram: error: interrupted by {signum.name}"
    assert hint == (
        f"parallel-fixedram: hint: {str(output)!r} has what was measured: "
        "the same command with --resume instead of --overwrite goes on there"
    )
    assert results.load(str(output)).finished is None


def test_a_run_that_fails_says_how_to_go_on_too_but_not_one_that_never_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(scenario('way = "page-by-page"\nguest = "dense,size=1MiB"').text)
    monkeypatch.setattr(Naive, "run", lambda *_: (_ for _ in ()).throw(HostError("no more")))
    failed = call("bench", "s.toml", "--folder", tmp_path)
    assert failed.code == 5
    assert failed.err.splitlines()[-1].endswith("has what was measured: the same command with --resume goes on there")
    refused(call("bench", "s.toml", "--folder", "nowhere", "--overwrite"), 2, "'nowhere' is not a folder", hint="")


@pytest.mark.parametrize("root", [True, False])
def test_the_list_says_of_each_scenario_what_it_asks_how_long_it_takes_and_what_is_missing(monkeypatch, root):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("QEMU", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    found = {each["name"]: each for each in done(call("bench", "list", "--json")).json["scenarios"]}
    assert set(found) == set(shipped())
    assert all(each["question"].endswith("?") for each in found.values())
    assert found["few"]["needs"] == []
    assert found["few"]["runs"] == 54
    assert found["few"]["rough_seconds"] > 20
    needs = {each["name"]: each for each in found["smoke"]["needs"]}
    assert set(needs) == {"QEMU", "libvirt", "fio", "root", "xfs", "ext4"}
    assert "fio is not installed" in needs["fio"]["why_missing"]
    assert "QEMU" not in {each["name"] for each in found["gaps"]["needs"]}
    assert ("mkfs.xfs is not installed" if root else "needs root") in needs["xfs"]["why_missing"]
    assert root or not needs["root"]["there"]
    text = done(call("bench", "list")).out
    assert text.count("\n") == 2 * len(found)
    assert "fio is missing: fio is not installed: install the package fio" in text
    assert "needs nothing" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_behind_bench_has_a_help_text(command):
    text = done(call("bench", command, "--help")).out
    assert text.startswith(f"usage: parallel-fixedram bench {command} ")
    assert all(option in text for option in ("--json", "--debug", "--help"))


def test_words_behind_bench_that_are_wrong_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(scenario(QUICK).text)
    refused(call("bench"), 2, "arguments are required: COMMAND")
    refused(call("bench", "nothing"), 2, "no scenario 'nothing'")
    refused(call("bench", "s.toml", "--folder", "nowhere"), 2, "'nowhere' is not a folder")
    refused(call("bench", "s.toml", "--repeats", "0"), 2, "expected a whole number of 1 or more")
    refused(call("bench", "s.toml", "s.toml"), 2, "one file for results")
    refused(call("bench", "s.toml", "--resume", "--overwrite"), 2, "either resume or overwrite")
