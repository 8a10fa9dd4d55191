"""The page: complete in itself, nothing unescaped, every sample there, the same each time."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from support import synthetic
from support.cli import call, done, refused
from support.run_sets import HOST, case, run_set

from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.experiments import report, results
from parallel_fixedram.experiments.results import Instrumented, MissingWay

EVIL = "<script>alert('x')</script>&\"'"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, in order, balanced; and all text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def text_of(*run_sets):
    return report.page([(f"{n}.json", each) for n, each in enumerate(run_sets)], with_pictures=False)


def test_gaps_of_guests_that_are_watched_and_processor_time_are_a_table():
    page = report.page([("w", synthetic.work())], with_pictures=False)
    assert "<th>99 %</th><th>longest</th><th>QEMU</th><th>ours</th>" in page
    assert "<td>0.6 (0.6)</td><td>0.7 (0.7)</td><td>2 (1)</td>" in page
    assert page.count("<td>1.00</td><td>0.50</td></tr>") == 2
    assert "two looks" not in report.page([("p", synthetic.pauses())], with_pictures=False)


def test_single_writes_shards_and_faults_are_a_table_by_how_long_they_took():
    fault_seconds = {"median": 0.001, "p99": 0.004, "max": 0.004, "bins": [0] * 10 + [5, 0, 2]}
    each = case("ours", [1.0, 1.0])
    told = [replace(sample, report={"snapshot": {"fault_seconds": fault_seconds}}) for sample in each.samples]
    watched = Instrumented(private_bytes_peak=1, timeline=((0, 0.0, 0.003, 0, 1),), write_bins=(0, 0, 1, 99))
    page = report.page([("a", run_set(replace(each, samples=tuple(told), instrumented=watched)))], with_pictures=False)
    assert "<th>99 %</th><th>4 us</th><th>8 us</th>" in page
    assert "<td>write</td><td>&lt; 8 us</td><td>1</td><td>99</td>" in page
    assert "<td>shard</td><td>&lt; 4.1 ms</td>" in page
    assert re.search("<td>fault</td><td>&lt; 4.1 ms</td>(<td></td>)*<td>10</td><td></td><td>4</td>", page)
    assert "single writes" not in report.page([("p", run_set(case("fio", [1.0])))], with_pictures=False)


def test_a_guest_that_lost_less_than_nothing_has_no_ratio_in_that_round():
    ours, other = case("ours", [1.0, 1.0]), case("qemu-file", [1.0, 1.0])

    def lost(each, values):
        pairs = zip(each.samples, values, strict=True)
        told = tuple(replace(one, seconds=replace(one.seconds, lost=value)) for one, value in pairs)
        return replace(each, samples=told)

    page = report.page([("a", run_set(lost(ours, [-0.5, 0.2]), lost(other, [0.3, 0.1])))], with_pictures=False)
    assert '<td title="ratio">0.50 (' in page


def test_a_page_has_question_host_samples_and_what_is_missing():
    page = Page(text_of(run_set(case("ours", [0.0101, 0.0203, 0.0302]))))
    words = " ".join(page.words)
    for each in ("Does anything follow", "Synthetic CPU", "ext4", "10.1, 20.3, 30.2", "fio: not installed <here>"):
        assert each in words
    assert "h2" in page.tags


def test_everything_from_results_is_escaped():
    evil = run_set(
        replace(case("ours", [1.0]), id=EVIL, parameters={"way": "ours", "guest": EVIL}),
        host={**HOST, EVIL: {EVIL: EVIL}},
        versions={EVIL: EVIL},
        commit=EVIL,
        started=EVIL,
        finished=EVIL,
        missing=(MissingWay(way=EVIL, why=EVIL, cases=()),),
        scenario={"name": EVIL, "question": EVIL, "text": EVIL},
    )
    page = Page(report.page([(EVIL, evil)], with_pictures=False))
    assert "script" not in page.tags
    assert " ".join(page.words).count(EVIL) >= 10


def test_the_page_needs_nothing_from_anywhere_and_runs_nothing():
    page = Page(report.page([("a", synthetic.gaps()), ("b", synthetic.growth())]))
    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 3
    assert all(re.match("data:image/(png|svg\\+xml);base64,", value) for value in sources)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_ratios_are_those_of_the_same_rounds():
    ours, fio = case("ours", [1, 2, 3, 4, 5, 6, 7]), case("fio", [2, 4, 6, 8, 10, 12, 14])
    assert ">2.00 (2.00 to 2.00)</td>" in text_of(run_set(ours, fio))
    late = replace(fio, samples=fio.samples[3:])
    assert ">2.00 (4 of at least 6 samples)</td>" in text_of(run_set(ours, late))
    assert ">2.00 (" not in text_of(run_set(fio))


def test_ratios_are_those_on_the_same_file_system():
    cases = [
        replace(case(way, times), id=f"{way} {kind}", parameters={"way": way, "guest": "zero", "file_system": kind})
        for way, kind, times in (
            ("ours", "xfs", [1] * 7), ("fio", "xfs", [3] * 7), ("ours", "tmpfs", [2] * 7), ("fio", "tmpfs", [3] * 7),
        )
    ]  # fmt: skip
    text = text_of(run_set(*cases))
    assert text.count(">3.00 (3.00 to 3.00)</td>") == 2  # in two tables, of different times
    assert text.count(">1.50 (1.50 to 1.50)</td>") == 2
    assert "guest zero, on xfs" in text


def test_sizes_are_in_binary_units_and_what_two_places_tell_is_there_once():
    host = {
        **HOST, "memory": 25 << 30, "memory_available": 3 << 29, "swap": 0, "cpu_mhz": 2596.1,
        "kernel": "6.18", "python": "3.11",
        "disk": {"size": 1 << 40, "free": 5 << 30}, "dirty_limits": {"dirty_bytes": 1 << 20, "dirty_ratio": 20},
        "load_average": [0.123456789, 2.0, 1.5],
    }  # fmt: skip
    words = Page(text_of(run_set(case("ours", [1.0]), host=host, versions={"kernel": "6.18", "python": "3.11"}))).words
    facts = dict(pairwise(words))
    told = ("memory", "memory available", "swap", "disk size", "disk free", "dirty limits dirty", "load average")
    assert [facts[name] for name in told] == [
        "25.0 GiB", "1.5 GiB", "0 B", "1.0 TiB", "5.0 GiB", "1.0 MiB", "0.123457, 2, 1.5",
    ]  # fmt: skip
    assert (facts["dirty limits dirty ratio"], facts["cpu mhz"]) == ("20", "2596.1")
    assert words.count("6.18") == words.count("3.11") == 1


def test_a_page_fits_a_small_screen_and_says_things_once():
    text = text_of(synthetic.pauses())
    assert ("name", "viewport") in Page(text).attributes
    assert "@media (max-width: 700px)" in text
    assert text.count("A ratio is that of times in the same round") == 1
    assert text.count("checked by") == len([each for each in synthetic.pauses().cases if each.samples])


def test_the_time_of_started_guests_ends_when_they_run():
    parts = [replace(case(way, [1.0]), id=way, parameters={"way": way}) for way in ("ours", "clone")]
    assert "Milliseconds until all guests run" in text_of(run_set(parts[1]))
    assert "Milliseconds until everything is on stable storage, or until all guests run" in text_of(run_set(*parts))
    assert "guests run" not in text_of(run_set(parts[0]))


def test_only_times_that_some_case_tells_have_a_table():
    text = text_of(run_set(case("ours", [1.0])))
    assert "until everything is on stable storage" in text
    assert "while the guest stands still" not in text
    assert "while the guest stands still" in text_of(synthetic.pauses())


@pytest.mark.parametrize("cases", [[], [case("ours", [])]])
def test_results_without_samples_make_a_page_too(cases):
    Page(report.page([("a", run_set(*cases, finished=None, commit=None))]))


def test_the_command_writes_the_page_and_nothing_else_and_the_same_results_give_the_same_page(tmp_path):
    path, output = tmp_path / "gaps.json", tmp_path / "report.html"
    results.store(synthetic.gaps(), str(path))
    assert done(call("bench", "report", path, "--output", output)).out == f"wrote {output}\n"
    Page(output.read_text())
    assert output.read_text() == report.page([(str(path), synthetic.gaps())])
    assert {each.name for each in tmp_path.iterdir()} == {"gaps.json", "report.html"}
    found = done(call("bench", "report", path, "--output", output, "--no-pictures", "--json")).json
    assert found == stamped("bench_report", {"verb": "bench report", "results": [str(path)], "output": str(output)})


def test_a_page_that_cannot_be_written_is_the_hosts_fault(tmp_path):
    path = tmp_path / "gaps.json"
    results.store(synthetic.gaps(), str(path))
    refused(call("bench", "report", path, "--no-pictures", "--output", tmp_path / "no" / "x.html"), 5, "cannot write")
