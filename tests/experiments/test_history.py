"""Results kept commit after commit: what is appended, and where a level changed; and results for other programs."""

import csv
import io
import json

import numpy as np
import pytest
from support.cli import call, done, refused
from support.run_sets import HOST, case, of_scenario, run_set

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.experiments import export, history, results
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.pictures import trend as picture
from parallel_fixedram.experiments.steps import find_steps


def noisy(levels, spread=0.03):
    random = np.random.default_rng(5)
    return [float(level * (1 + random.normal(0, spread))) for level in levels]


def test_a_step_is_found_where_the_level_changes():
    [step] = find_steps(noisy([1.0] * 9 + [1.3] * 8))
    assert step.place == 9
    assert (step.before, step.after) == (pytest.approx(1.0, rel=0.03), pytest.approx(1.3, rel=0.03))
    assert step.probability < 0.01


def test_several_steps_are_found_up_and_down():
    steps = find_steps(noisy([1.0] * 12 + [1.5] * 12 + [0.8] * 12))
    assert [step.place for step in steps] == [12, 24]
    assert [step.after for step in steps] == [pytest.approx(1.5, rel=0.03), pytest.approx(0.8, rel=0.03)]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [1, 2, 3],
        [1] * 30,
        noisy([1.0] * 40),
        noisy([1.0] * 20 + [9.0] + [1.0] * 20),
        [1, 1, 1, 1, 2, 2, 2, 2],
    ],
)
def test_noise_one_value_far_off_and_too_few_values_are_no_step(values):
    assert find_steps(values) == []


def test_a_step_is_seen_in_noise_alone_in_about_one_of_a_hundred_series():
    random = np.random.default_rng(7)
    assert sum(bool(find_steps(random.normal(1, 0.1, 20))) for _ in range(200)) <= 6


def measured(number, factor=1.0, **fields):
    times = [factor * each for each in (1.0, 1.02, 0.98)]
    started = f"2000-01-{number + 1:02}T00:00:00+00:00"
    return run_set(case("ours", times), case("fio", [1.0, 1.1]), commit=f"{number:040x}", started=started, **fields)


def test_results_are_appended_once(tmp_path):
    path = str(tmp_path / "h.jsonl")
    assert history.append(path, [measured(0), measured(1)])[1] == 4
    entries, added = history.append(path, [measured(1), measured(2)])
    assert (len(entries), added) == (6, 2)
    assert history.load(path) == entries
    assert [entry.commit[-1] for entry in entries] == ["0", "0", "1", "1", "2", "2"]
    head = json.loads((tmp_path / "h.jsonl").read_text().splitlines()[0])
    assert (head["schema"], head["version"]) == ("parallel_fixedram.history", 1)


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"schema": "parallel_fixedram.history", "version": 9}', "\n"])
def test_what_is_no_history_is_left_alone(tmp_path, line):
    path = tmp_path / "h.jsonl"
    history.append(str(path), [measured(0)])
    path.write_text(path.read_text() + line + "\n")
    before = path.read_text()
    with pytest.raises(FormatError, match="line 3: not an entry of a history"):
        history.append(str(path), [measured(1)])
    assert path.read_text() == before


def test_a_trend_is_that_of_the_last_host(tmp_path):
    other = {**HOST, "cpus": 64}
    entries = [
        entry for each in (measured(0, host=other), measured(1), measured(2)) for entry in history.entries_of(each)
    ]
    ours, fio = history.trends(entries, Metric.TOTAL)
    assert (ours.case, fio.case) == ("ours", "fio")
    assert (len(ours.entries), ours.left_out) == (2, 1)
    assert history.trends(entries, Metric.PAUSE) == []


def test_the_command_appends_says_where_it_changed_and_draws_it(tmp_path):
    file, folder = tmp_path / "h.jsonl", tmp_path / "pictures"
    paths = []
    for number, factor in enumerate(noisy([1.0] * 7 + [1.4] * 7, 0.01)):
        paths.append(tmp_path / f"{number}.json")
        results.store(measured(number, factor), str(paths[-1]))
    said = done(call("bench", "history", file, *paths, "--folder", folder)).out
    assert f"{file}: 28 records, 28 of them new\n" in said
    assert "step at 000000000000: " in said
    assert "1.4" in said.partition("step at")[2]
    assert {path.name for path in folder.iterdir()} == {f"trend-{n}.{kind}" for n in (1, 2) for kind in ("png", "svg")}
    told = done(call("bench", "history", file, paths[0], "--json")).json
    assert (told["entries"], told["added"], told["pictures"]) == (28, 0, [])
    assert [[step["place"] for step in each["steps"]] for each in told["trends"]] == [[7], []]
    assert (
        "no picture: no case was measured twice"
        in done(call("bench", "history", file, "--metric", "pause", "--folder", folder)).out
    )
    refused(call("bench", "history", tmp_path), 5, "cannot read")


def test_a_picture_has_a_point_an_entry_and_a_line_a_level():
    entries = [
        entry
        for number, factor in enumerate([1] * 7 + [2] * 7)
        for entry in history.entries_of(measured(number, factor))
    ]
    first, second = picture.draw(history.trends(entries, Metric.TOTAL))
    [axes] = first.figure.axes
    [points] = axes.containers
    assert len(points.lines[0].get_xdata()) == 14
    levels = [line.get_segments()[0] for line in axes.collections if line not in points.lines[2]]
    assert [level[0][1] for level in levels] == [pytest.approx(1.0), pytest.approx(2.0)]
    texts = " ".join(text.get_text() for text in first.figure.texts)
    assert "synthetic: ours" in texts
    assert "1000 to 2000 ms at 00000000" in texts
    assert "no step found" in " ".join(text.get_text() for text in second.figure.texts)


RESULT = """
name = "s"
question = "Which | is faster?"
[[case]]
way = ["qemu-file", "ours"]
qemu = { size = "64MiB", dirty_rate = "1MiB", ram = "private" }
[[case]]
way = "ours"
guest = "dense,size=1MiB"
calibrate = true
"""


def result():
    return of_scenario(RESULT, lambda _case, number: {"total": 1 + number / 10, "seconds": {"pause": 0.25}})


def test_csv_has_a_row_a_sample_and_the_same_columns_whatever_was_measured():
    found = list(csv.DictReader(io.StringIO(export.as_csv([result(), run_set(case("scan", [0.5]))]))))
    assert len(found) == 3 * 7 + 1
    assert {tuple(row) for row in found} == {export.COLUMNS}
    row = found[0]
    assert (row["schema"], row["version"], row["way"]) == ("parallel_fixedram.samples", "1", "qemu-file")
    assert (row["qemu_size"], row["qemu_ram"], row["qemu_watched"]) == (str(64 << 20), "private", "false")
    assert (row["number"], row["total_seconds"], row["pause_seconds"], row["lost_seconds"]) == ("0", "1.0", "0.25", "")
    assert (row["ram_bytes"], row["written_bytes"]) == (str(1 << 30), "")
    dense = found[14]
    assert (dense["guest"], dense["calibrate"], dense["qemu_size"]) == ("dense,size=1MiB", "true", "")


def test_the_columns_are_those_that_the_docs_promise():
    assert export.COLUMNS[:9] == (
        "schema",
        "version",
        "scenario",
        "commit",
        "started",
        "case",
        "way",
        "guest",
        "channels",
    )
    assert export.COLUMNS[-22:] == (
        "number", "verified",
        "total_seconds", "last_write_seconds", "pause_seconds", "lost_seconds", "gap_seconds", "wall_seconds",
        "ram_bytes", "data_bytes", "written_bytes", "file_bytes", "allocated_bytes",
        "guests_bytes", "touch", "first_touch_seconds", "second_touch_seconds",
        "image_format", "live", "qemu_hot", "qemu_at_random", "qemu_domain",
    )  # fmt: skip


def test_markdown_has_a_row_a_case_with_medians_and_intervals():
    lines = export.as_markdown([result()]).splitlines()
    assert lines[0] == "### Which | is faster?"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert table[2].startswith("| qemu-file qemu=size=64MiB")
    assert "| 7 | 1300.0 (1000.0-1600.0) | 1000.0-1600.0 |" in table[2]
    assert len({line.count("|") for line in table}) == 1


def test_the_command_prints_or_writes_it(tmp_path):
    path, output = tmp_path / "r.json", tmp_path / "r.csv"
    results.store(result(), str(path))
    printed = done(call("bench", "export", path, "--format", "csv")).out
    assert printed == export.as_csv([result()])
    done(call("bench", "export", path, "--format", "csv", "--output", output))
    assert output.read_text() == printed
    told = done(call("bench", "export", path, "--format", "markdown", "--output", output, "--json")).json
    assert (told["format"], told["output"]) == ("markdown", str(output))
    refused(call("bench", "export", path, "--format", "csv", "--json"), 2, "--output")
