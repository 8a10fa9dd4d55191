"""The page: complete in itself, nothing unescaped, every sample there, the same each time."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support import synthetic
from support.cli import call, done, refused
from support.run_sets import HOST, case, run_set

from parallel_fixedram.experiments import report, results
from parallel_fixedram.experiments.results import MissingWay

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


def test_the_same_results_give_the_same_page():
    assert report.page([("a", synthetic.gaps())]) == report.page([("a", synthetic.gaps())])


def test_ratios_are_those_of_the_same_rounds():
    ours, fio = case("ours", [1, 2, 3, 4, 5, 6, 7]), case("fio", [2, 4, 6, 8, 10, 12, 14])
    assert "<td>2.00 (2.00 to 2.00)</td>" in text_of(run_set(ours, fio))
    late = replace(fio, samples=fio.samples[3:])
    assert "<td>2.00 (4 of at least 6 samples)</td>" in text_of(run_set(ours, late))
    assert "<td>2.00" not in text_of(run_set(fio))


def test_only_times_that_some_case_tells_have_a_table():
    text = text_of(run_set(case("ours", [1.0])))
    assert "until everything is on stable storage" in text
    assert "while the guest stands still" not in text
    assert "while the guest stands still" in text_of(synthetic.pauses())


@pytest.mark.parametrize("cases", [[], [case("ours", [])]])
def test_results_without_samples_make_a_page_too(cases):
    Page(report.page([("a", run_set(*cases, finished=None, commit=None))]))


def test_the_command_writes_the_page_and_nothing_else(tmp_path):
    path, output = tmp_path / "gaps.json", tmp_path / "report.html"
    results.store(synthetic.gaps(), str(path))
    assert done(call("bench", "report", path, "--output", output)).out == f"wrote {output}\n"
    Page(output.read_text())
    assert {each.name for each in tmp_path.iterdir()} == {"gaps.json", "report.html"}
    found = done(call("bench", "report", path, "--output", output, "--no-pictures", "--json")).json
    assert found == {"verb": "bench report", "results": [str(path)], "output": str(output)}


def test_a_page_that_cannot_be_written_is_the_hosts_fault(tmp_path):
    path = tmp_path / "gaps.json"
    results.store(synthetic.gaps(), str(path))
    refused(call("bench", "report", path, "--no-pictures", "--output", tmp_path / "no" / "x.html"), 5, "cannot write")
