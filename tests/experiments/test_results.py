"""Run sets go to JSON and come back."""

import json

import pytest

from parallel_fixedram.core.errors import FormatError, HostError, RequestError
from parallel_fixedram.experiments.results import (
    Bytes,
    CaseResult,
    Instrumented,
    MissingWay,
    RunSet,
    Sample,
    ScenarioFacts,
    Seconds,
    load,
    store,
)

FULL = RunSet(
    scenario=ScenarioFacts(name="s", question="Why?", repeats=2, warm_up=1, seed=3, text="name = 's'"),
    started="2024-01-01T00:00:00+00:00",
    finished=None,
    commit="abc+",
    versions={"python": "3.11", "qemu": None},
    host={"cpus": 2, "disk": {"free": 5}},
    order=("a", "b", "a"),
    missing=(MissingWay(way="fio", why="is not installed", cases=("c",)),),
    cases=(
        CaseResult(
            id="a",
            parameters={"way": "ours", "channels": 2},
            samples=(
                Sample(
                    number=0,
                    seconds=Seconds(total=1.5, last_write=1.0, pause=None, wall=1.7, phases={"scan": 0.1}),
                    bytes=Bytes(ram=4096, data=4096, written=8192, file=9000, allocated=8192),
                    verified="ram",
                    report={"verb": "save"},
                    growth=((1, 10), (2, 20)),
                    sequential=((1, 11), (2, 22)),
                ),
            ),
            instrumented=Instrumented(private_bytes_peak=5, timeline=((0, 0.5, 1.0, 1 << 20, 4096),)),
        ),
        CaseResult(id="b", parameters={"way": "scan"}),
    ),
)


def test_what_is_stored_is_loaded_again(tmp_path):
    path = str(tmp_path / "r.json")
    store(FULL, path)
    assert load(path) == FULL
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_the_file_says_its_schema_first(tmp_path):
    store(FULL, str(tmp_path / "r.json"))
    data = json.loads((tmp_path / "r.json").read_text())
    assert list(data.items())[:2] == [("schema", "parallel_fixedram.results"), ("version", 2)]


def test_results_of_the_first_version_stay_readable(tmp_path):
    """They had their version's number as schema."""
    data = {**FULL.to_json(), "schema": 1}
    del data["version"]
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert load(str(tmp_path / "r.json")) == FULL


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("schema"),
        lambda data: data.update(schema=2),
        lambda data: data.update(schema=True),
        lambda data: data.update(schema="parallel_fixedram.save"),
        lambda data: data.update(version=1),
        lambda data: data.update(version="2"),
        lambda data: data.pop("version"),
        lambda data: data.pop("order"),
        lambda data: data["cases"][0]["samples"][0].update(verified="perhaps"),
        lambda data: data["cases"][0]["samples"][0]["seconds"].update(total="1"),
        lambda data: data["cases"][0]["samples"][0]["seconds"].pop("total"),
        lambda data: data["cases"][0]["instrumented"].update(timeline=[[1, 2]]),
        lambda data: data["cases"][0]["instrumented"]["timeline"][0].__setitem__(3, float("inf")),
        lambda data: data.update(cases=7),
    ],
)
def test_what_is_no_run_set_is_a_format_error_that_names_the_file(change, tmp_path):
    data = json.loads(json.dumps(FULL.to_json()))
    change(data)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=r"r\.json"):
        load(str(path))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000])
def test_other_files_are_format_errors(text, tmp_path):
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"r\.json"):
        load(str(tmp_path / "r.json"))


def test_a_file_that_is_not_there_and_one_that_cannot_be_written_are_said(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        load(str(tmp_path / "r.json"))
    with pytest.raises(HostError, match="cannot write"):
        store(FULL, str(tmp_path / "no" / "r.json"))


def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(FormatError, match="binary' is not JSON: it is not even text"):
        load(str(tmp_path / "binary"))
