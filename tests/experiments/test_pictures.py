"""Every picture, drawn from made-up results: whole, legible, with units, the same each time."""

import contextlib
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import synthetic
from support.cli import call, done, refused
from support.run_sets import case, run_set

from parallel_fixedram.experiments import pictures, results
from parallel_fixedram.experiments.calibrate_simulation import calibrated
from parallel_fixedram.experiments.pictures import drawing, guest_work, series, simulated, style, time_lines

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

EXPECTED = {
    "channels": {"throughput": 1, "time-lines": 6, "simulation": 2},
    "gaps": {"gaps": 1},
    "growth": {"file-size": 2},
    "pauses": {"throughput": 4, "pauses": 2},
    "scaling": {"scaling": 1},
    "work": {"guest-work": 1, "stalls": 1, "pauses": 1},
}
UNIT = re.compile(r", (s|ms|GiB|GiB/s)$|\((number|worker processes|worker processes or jobs|1 = all)\)$")


@pytest.fixture(scope="module")
def everything():
    """All pictures of all synthetic results, and why there are no others."""
    return {name: pictures.pictures_of(make()) for name, make in synthetic.ALL.items()}


@pytest.fixture(scope="module")
def drawn(everything):
    """All pictures."""
    return {name: found for name, (found, _) in everything.items()}


def each(drawn):
    return [picture for found in drawn.values() for picture in found]


@pytest.mark.parametrize("name", synthetic.ALL)
def test_results_give_the_pictures_that_they_have_data_for(drawn, name):
    kinds = [picture.name.rpartition("-")[0] for picture in drawn[name]]
    assert {kind: kinds.count(kind) for kind in kinds} == EXPECTED[name]


@pytest.mark.parametrize("name", synthetic.ALL)
def test_for_every_other_kind_it_is_said_what_is_missing(everything, name):
    found, missing = everything[name]
    kinds = {picture.name.rpartition("-")[0] for picture in found}
    assert kinds | missing.keys() == pictures.KINDS.keys()
    assert not kinds & missing.keys()
    assert all(missing.values())


def test_every_axis_has_a_unit(drawn):
    for picture in each(drawn):
        for axes in picture.figure.axes:
            assert UNIT.search(axes.get_xlabel()), (picture.name, axes.get_xlabel())
            if axes.get_ylabel():
                assert UNIT.search(axes.get_ylabel()), (picture.name, axes.get_ylabel())
    # beside a panel that shares its axis, and where bars have names, there is none
    without = {p.name.rpartition("-")[0] for p in each(drawn) for axes in p.figure.axes if not axes.get_ylabel()}
    assert without == {"throughput", "pauses", "guest-work"}


SEEN = {
    "throughput": "How fast data is written, by number of channels",
    "gaps": "How long the round over the dirty pages takes, by their share and the rule for gaps",
    "file-size": "How large the file is while the guest goes on dirtying its RAM, by rounds",
    "pauses": "How long the guest stands still, and how long all of a save takes, by way",
    "guest-work": "What does the guest get done while it is saved or started, and how long are its gaps?",
    "stalls": "How long does the guest get nothing done at a time, while it is saved or started?",
    "scaling": "How long a save takes, by size of RAM",
    "time-lines": "Which worker writes or looks where, and when?",
    "simulation": "Simulation: does it explain what was measured, and what does it say of 1 TiB?",
}


def test_the_title_says_what_is_seen_and_fits_into_a_line(drawn):
    pictures = list(each(drawn))
    assert {picture.name.rpartition("-")[0]: picture.title for picture in pictures} == SEEN
    assert max(len(picture.title) for picture in pictures) <= 95


def test_guests_that_are_started_from_a_file_are_no_data_that_is_written():
    saved = synthetic.channels()
    started = [
        replace(saved.cases[0], id=f"clone {n}", parameters={"way": "clone", "channels": n, "count": n}) for n in (1, 2)
    ]
    _, missing = pictures.pictures_of(replace(saved, cases=tuple(started)))
    assert {"throughput", "scaling"} <= set(missing)


def test_a_simulation_is_called_one_in_the_picture(drawn):
    found = [picture for picture in each(drawn) if picture.name.startswith("simulation")]
    assert found
    for picture in found:
        assert picture.title.startswith("Simulation")
        assert "SIMULATION" in picture.figure.axes[1].get_title()
        [legend] = picture.figure.legends
        assert all("imulat" in text.get_text() or text.get_text() == "measured" for text in legend.get_texts())


def first_of_each_kind(drawn):
    """Of every result the first picture of each kind: others of that kind have other subjects only."""
    found = {}
    for name, drawn_of_it in drawn.items():
        for picture in drawn_of_it:
            found.setdefault((name, picture.name.rpartition("-")[0]), picture)
    return [*found.values()]


@pytest.fixture(scope="module")
def rendered(drawn):
    """Pictures and what they were drawn with, so that texts have their places."""
    return [(picture, render(picture)) for picture in first_of_each_kind(drawn)]


def render(picture):
    FigureCanvasAgg(picture.figure).draw()
    return picture.figure.canvas.get_renderer()


def boxes(picture, renderer):
    """Name and place of everything that must not lie on anything else."""
    found = [(f"axes {n}", axes.get_tightbbox(renderer)) for n, axes in enumerate(picture.figure.axes)]
    found += [("legend", legend.get_window_extent(renderer)) for legend in picture.figure.legends]
    found += [(text.get_gid(), text.get_window_extent(renderer)) for text in picture.figure.texts]
    return found


def test_nothing_lies_on_anything_else_or_outside_of_the_picture(rendered):
    for picture, renderer in rendered:
        found = boxes(picture, renderer)
        width, height = picture.figure.bbox.width, picture.figure.bbox.height
        for name, box in found:
            assert box.x0 >= 0, (picture.name, name)
            assert box.y0 >= 0, (picture.name, name)
            assert box.x1 <= width, (picture.name, name)
            assert box.y1 <= height, (picture.name, name)
        for (one, a), (other, b) in combinations(found, 2):
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, (picture.name, one, other)


def test_tick_labels_do_not_touch_each_other(rendered):
    for picture, renderer in rendered:
        for axes in picture.figure.axes:
            texts = [label.get_window_extent(renderer) for label in axes.get_xticklabels() if label.get_text()]
            texts = sorted((box for box in texts if box.width), key=lambda box: box.x0)
            for left, right in pairwise(texts):
                assert left.x1 < right.x0, picture.name


def test_a_worker_whose_shards_hold_no_data_is_seen_and_named():
    """Shards: worker, start, end, offset, bytes written. In a file of 1 GiB a box of a page has no height."""
    shards = ((0, 0.0, 1.0, 0, 1 << 30), (1, 0.0, 0.5, 1 << 29, 0), (1, 0.5, 0.5, 0, 0), (2, 0.0, 1.0, 1 << 29, 4096))
    watched = results.Instrumented(private_bytes_peak=0, timeline=shards)
    [picture] = time_lines.draw(run_set(replace(case("ours", [1.0]), instrumented=watched)))
    [axes] = picture.figure.axes
    [box] = axes.patches
    lines = {(line.get_gid(), tuple(line.get_xdata()), tuple(line.get_ydata())): line for line in axes.get_lines()}
    empty, at_once, little = (
        lines["worker 1", (0.0, 0.5), (0.5, 0.5)],
        lines["worker 1", (0.5, 0.5), (0.0, 0.0)],
        lines["worker 2", (0.0, 1.0), (0.5, 0.5)],
    )
    assert len(lines) == 3
    assert (
        len({matplotlib.colors.to_hex(each) for each in (box.get_edgecolor(), empty.get_color(), little.get_color())})
        == 3
    )
    assert empty.get_linewidth() > 2
    assert at_once.get_dash_capstyle() == "round", "or it has no length to be seen by"
    assert (empty.get_linestyle(), little.get_linestyle()) == ("--", "-")
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == [
        "worker 0, written", "worker 1, looked at, nothing to write", "worker 2, little written",
    ]  # fmt: skip


def test_every_sample_is_a_dot(drawn):
    [picture] = drawn["gaps"]
    dots = [line for line in picture.figure.axes[0].get_lines() if line.get_marker() == "."]
    run = synthetic.gaps()
    assert sum(len(line.get_xdata()) for line in dots) == sum(len(each.samples) for each in run.cases)


def test_lines_and_areas_can_be_told_apart_in_grey():
    lines = [style.line_style(number) for number in range(70)]
    assert len({(line["marker"], str(line["linestyle"])) for line in lines}) == 70
    areas = [style.area_style(number)["hatch"] for number in range(len(style.HATCHES))]
    assert len(set(areas)) == len(areas) >= 11


def test_the_foot_tells_host_commit_and_number_of_samples(drawn):
    [picture] = drawn["gaps"]
    foot = " ".join(text.get_text() for text in picture.figure.texts if text.get_gid() == "foot")
    for word in ("Synthetic CPU", "2 processors", "ext4 on made up", "commit 0000000", "n = 7 samples"):
        assert word in foot


def test_one_series_of_many_has_room_for_its_legend():
    many = [f"way number {number} with a rather long name indeed, and more" for number in range(40)]
    drawn = drawing.sheet()
    [axes] = drawn.axes
    for number, label in enumerate(many):
        drawn.legend(axes.plot([1, 2], [number, number], **style.line_style(number))[0], label)
    picture = drawing.finish(drawn, run_set(), "many", "How? " + "very " * 40 + "long?", subject="$x$ " * 60)
    found = boxes(picture, render(picture))
    assert len(picture.figure.legends[0].get_texts()) == 40
    for (_, a), (_, b) in combinations(found, 2):
        assert a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.y1 <= picture.figure.bbox.height for _, box in found)


def test_work_of_a_guest_is_drawn_over_time_with_save_and_pause_in_their_places(drawn):
    [picture] = [picture for picture in drawn["work"] if picture.name == "guest-work-1"]
    left, right = picture.figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["ours", "QEMU file", "stop and cont alone"]
    typical = [guest_work.typical(case) for case in synthetic.work().cases]
    assert all(sorted(s.seconds.lost for s in c.samples)[3] == t.seconds.lost
               for c, t in zip(synthetic.work().cases, typical, strict=True))  # fmt: skip
    pauses = {patch.get_y(): (patch.get_x(), patch.get_width()) for patch in left.patches}
    expected = {2: typical[0], 1: typical[1]}
    assert pauses == {y: (pytest.approx(0.3), pytest.approx(each.seconds.pause)) for y, each in expected.items()}
    lines = [each.get_segments()[0].tolist() for each in left.collections if hasattr(each, "get_segments")]
    saves = {round(y): (x, end) for (x, y), (end, _) in lines if x == 0}
    assert saves == {2: (0, pytest.approx(0.7)), 1: (0, pytest.approx(0.7)), 0: (0, pytest.approx(1.0))}
    dots = {(line.get_xdata()[0], int(line.get_ydata()[0])) for line in right.get_lines()}
    assert len([y for _, y in dots if y == 2]) == 4
    assert len([y for _, y in dots if y == 0]) == 1, "older results have the longest gap only"


def test_phases_of_a_bar_add_up_to_the_time_of_a_sample(drawn):
    [picture] = [picture for picture in drawn["pauses"] if picture.name == "pauses-1"]
    axes = picture.figure.axes[1]
    rows = {}
    for bars in axes.containers:
        for bar in bars:
            rows[round(bar.get_y(), 3)] = max(rows.get(round(bar.get_y(), 3), 0), bar.get_x() + bar.get_width())
    times = {sample.seconds.total for each in synthetic.pauses().cases for sample in each.samples}
    assert len(rows) == 18
    for end in rows.values():
        assert min(abs(end - time) for time in times) < 1e-9


def test_a_picture_of_every_kind_is_a_png_and_an_svg(drawn, tmp_path):
    kinds = {picture.name.rpartition("-")[0]: picture for picture in each(drawn)}
    assert kinds.keys() == pictures.KINDS.keys()
    for kind, picture in kinds.items():
        png, svg = (Path(path) for path in drawing.save(picture, str(tmp_path / kind)))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert png.stat().st_size > 15_000, kind
        root = ElementTree.parse(svg).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def test_the_command_writes_png_and_svg_and_says_what_it_did_not_draw(tmp_path):
    paths = []
    for name in ("gaps", "scaling"):
        paths.append(tmp_path / f"{name}.json")
        results.store(synthetic.ALL[name](), str(paths[-1]))
    folder = tmp_path / "new" / "pictures"
    result = done(call("bench", "pictures", *paths, "--folder", folder))
    written = {line for line in result.out.splitlines() if line.startswith(str(folder))}
    assert written == {str(path) for path in folder.iterdir()}
    names = ("gaps-gaps-1", "scaling-scaling-1")
    assert {Path(path).name for path in written} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert "gaps: no picture scaling: no way was measured with two sizes of RAM" in result.out


def test_the_same_results_give_the_same_files_and_two_of_one_name_do_not_overwrite_each_other(tmp_path):
    found = pictures.draw_all([("x", synthetic.gaps()), ("x", synthetic.gaps())], str(tmp_path))
    paths = [Path(path) for each in found for path in each.paths]
    assert len(set(paths)) == len(paths) == 4
    for one, other in (paths[::2], paths[1::2]):
        assert one.suffix == other.suffix
        assert one.read_bytes() == other.read_bytes()


def test_json_of_the_command_has_paths_and_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "save", lambda picture, stem: (f"{stem}.png", f"{stem}.svg"))
    path = tmp_path / "gaps.json"
    results.store(synthetic.gaps(), str(path))
    found = done(call("bench", "pictures", path, "--folder", tmp_path / "p", "--json")).json
    assert found["verb"] == "bench pictures"
    by_kind = {each["kind"]: each for each in found["pictures"]}
    assert len(by_kind["gaps"]["paths"]) == 2
    assert by_kind["scaling"]["why"]


def test_results_without_samples_draw_nothing_and_are_no_error():
    found, missing = pictures.pictures_of(run_set())
    assert found == []
    assert missing.keys() == pictures.KINDS.keys()
    empty = synthetic.channels()
    empty = replace(empty, cases=tuple(replace(each, samples=(), instrumented=None) for each in empty.cases))
    assert pictures.pictures_of(empty)[0] == []


def test_one_sample_a_case_is_enough_to_draw(drawn):
    drawn_from_all, fitted = {picture.name for picture in each(drawn)}, 0
    for make in synthetic.ALL.values():
        whole = make()
        few = replace(whole, cases=tuple(replace(each, samples=each.samples[:1]) for each in whole.cases))
        for kind, draw in pictures.KINDS.items():
            if kind != simulated.NAME:  # which takes long but for what it is fitted to
                with contextlib.suppress(drawing.NotDrawnError):
                    drawn_from_all -= {picture.name for picture in draw(few)}
        fitted += len(calibrated(few)[0])
    assert {name.rpartition("-")[0] for name in drawn_from_all} == {simulated.NAME}
    assert fitted == EXPECTED["channels"]["simulation"]


def test_a_folder_that_is_a_file_is_a_wrong_request(tmp_path):
    path = tmp_path / "gaps.json"
    results.store(synthetic.gaps(), str(path))
    refused(call("bench", "pictures", path, "--folder", path), 2, "is not a folder")


def test_without_matplotlib_there_is_one_line_and_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "gaps.json"
    results.store(synthetic.gaps(), str(path))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    hint = "pip install 'parallel-fixedram[bench]'"
    refused(call("bench", "pictures", path, "--folder", tmp_path / "p"), 2, "pictures need matplotlib", hint)
    refused(call("bench", "report", path, "--output", tmp_path / "r"), 2, "pictures need matplotlib", hint)
    assert not (tmp_path / "p").exists()


def test_matplotlib_is_not_imported_before_something_is_drawn_and_pyplot_never():
    program = (
        "import sys; from parallel_fixedram.experiments import pictures; assert 'matplotlib' not in sys.modules;"
        "from support import synthetic; import tempfile;"
        "pictures.draw_all([('x', synthetic.gaps())], tempfile.mkdtemp(dir=sys.argv[1]));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    tests = str(synthetic.__file__).partition("/support/")[0]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", program, folder], env={"PYTHONPATH": tests}, check=True)


def test_labels_name_what_tells_lines_of_a_way_apart():
    a = replace(case("a", [1]), parameters={"way": "ours", "direct_io": "on", "block_size": 4096})
    b = replace(case("b", [1]), parameters={"way": "ours", "direct_io": "off", "block_size": 4096})
    c = replace(case("c", [1]), parameters={"way": "fio", "direct_io": "on", "block_size": 4096})
    labels = series.case_labels([a, b, c], not_in_name=())
    assert labels == ["ours, direct", "ours, buffered", "fio"]
    assert series.case_labels([a, c], not_in_name=(), always=("block_size",)) == [
        "ours, 4.0 KiB a call",
        "fio, 4.0 KiB a call",
    ]
