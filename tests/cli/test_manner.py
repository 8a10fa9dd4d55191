"""How the command talks: with --json in objects, about errors too; with --quiet of errors only."""

import fcntl
import json
from pathlib import Path

import pytest
from support.cli import call, done, part_of, run

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.schemas import VERSIONS, check, stamped
from parallel_fixedram.verbs import verify

DOCS = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manner")
    for name, seed in (("a", 1), ("b", 2)):
        done(call("save", folder / f"{name}.mr", "--guest", f"dense,size=64K,seed={seed}"))
    (folder / "bad.mr").write_bytes(b"QEVM" + bytes(100))
    with part_of(folder / "busy.mr").open("w") as others:
        fcntl.flock(others, fcntl.LOCK_EX)
        yield folder


ERRORS = {
    "usage": (["save"], 2),
    "no verb": (["--quiet"], 2),
    "an unknown verb": (["sav", "x"], 2),
    "an unknown option": (["verify", "a.mr", "--fast"], 2),
    "an option of another command line": (["restore", "a.mr", "-m", "1G"], 2),
    "a wrong value": (["save", "x.mr", "--guest", "dense", "--channels", "two"], 2),
    "the gate": (["save", "x.mr", "--guest", "dense,size=64K", "--channels", "2"], 2),
    "a wrong file": (["verify", "bad.mr"], 3),
    "no monitor": (["inspect", "--qmp", "nowhere"], 4),
    "a name that leads to no file": (["save", "x.mr", "--ram", "a=nowhere"], 2),
    "the host": (["save", "busy.mr", "--guest", "zero,size=4K"], 5),
    "a bench": (["bench", "compare", "bad.mr", "bad.mr"], 3),
}


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["", "quiet"])
@pytest.mark.parametrize("what", ERRORS)
def test_with_json_an_error_is_one_object_with_the_facts_of_its_lines(folder, monkeypatch, what, quiet):
    monkeypatch.chdir(folder)
    argv, code = ERRORS[what]
    in_text = call(*argv, *quiet)
    in_json = call(*argv, *quiet, "--json")
    assert (in_text.code, in_json.code, in_text.out, in_json.out) == (code, code, "", "")
    error = json.loads(in_json.err)
    assert list(error) == ["schema", "version", "code", "message", "hint"]
    assert (error["schema"], error["version"], error["code"]) == ("parallel_fixedram.error", 1, code)
    lines = [f"parallel-fixedram: error: {error['message']}"]
    if error["hint"]:
        lines.append(f"parallel-fixedram: hint: {error['hint']}")
    # with --json as the only argument argparse has the same complaint
    assert in_text.err.splitlines() == lines


def test_with_json_an_error_that_nobody_expected_is_an_object_too(folder, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(verify, "verify", broken)
    result = call("verify", folder / "a.mr", "--json")
    assert (result.code, result.out) == (5, "")
    assert json.loads(result.err)["message"] == "unexpected ZeroDivisionError: by"


def test_json_behind_two_dashes_belongs_to_qemu(tmp_path):
    assert call("restore", tmp_path / "no.mr", "--", "qemu-system-x86_64", "--json").err.startswith(
        "parallel-fixedram:"
    )


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["save", "q.mr", "--overwrite", "--guest", "dense,size=64K"], 0),
        (["plan", "q.mr", "--guest", "dense,size=64K"], 0),
        (["restore", "a.mr", "--ram", "pc.ram=ram"], 0),
        (["verify", "a.mr"], 0),
        (["verify", "a.mr", "--ram", "pc.ram=wrong"], 1),
        (["inspect", "a.mr"], 0),
        (["diff", "a.mr", "b.mr"], 1),
        (["caps"], 0),
        (["caps", "fixed-ram", "multifd"], 2),
        (["demo", "--size", "2MiB", "--folder", "."], 0),
        (["bench", "run", "s.toml", "--dry-run"], 0),
        (["bench", "simulate", "--ram", "1GiB"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_quiet_leaves_the_exit_code_and_what_was_asked_for(folder, monkeypatch, argv, code):
    """Before the verb or behind it; what --json asks for is printed as ever, and all of it says what it is."""
    monkeypatch.chdir(folder)
    (folder / "wrong").write_bytes(bytes(1 << 16))
    scenario = 'name = "s"\nquestion = "?"\n[[case]]\nway = "page-by-page"\nguest = "dense,size=1MiB"\n'
    (folder / "s.toml").write_text(scenario)
    result = call("-q", *argv)
    assert (result.code, result.out, result.err) == (code, "", "")
    told = call(*argv, "--json", "--quiet")
    assert (told.code, told.err) == (code, "")
    assert list(told.json)[:3] == ["schema", "version", "verb"]
    check(told.json, told.json["schema"].removeprefix("parallel_fixedram."))


def test_quiet_does_not_quieten_errors(folder):
    assert call("verify", folder / "bad.mr", "--quiet").err == call("verify", folder / "bad.mr").err != ""


def test_quiet_is_not_kept_for_what_comes_after(folder):
    done(call("verify", folder / "a.mr", "--quiet"))
    assert "ok" in done(call("verify", folder / "a.mr")).out


def test_a_closed_stdout_does_not_matter_to_a_quiet_command(folder):
    with open("/dev/full", "w") as full:
        assert done(run("verify", folder / "a.mr", "--quiet", stdout=full)).err == ""


def test_every_schema_is_in_the_docs_and_no_other():
    rows = [line.split("`") for line in DOCS.read_text().splitlines() if line.startswith("| `parallel_fixedram.")]
    assert {(row[1], int(row[2].strip(" |").split("|")[0])) for row in rows} == {
        (f"parallel_fixedram.{name}", version) for name, version in VERSIONS.items()
    }


def test_an_object_of_another_schema_or_version_is_refused():
    good = stamped("diff", {"verb": "diff"})
    check(good, "diff")
    for wrong in ({}, {"schema": 1}, {**good, "version": 2}, {**good, "version": True}, {**good, "schema": "diff"}):
        with pytest.raises(FormatError, match="expected"):
            check(wrong, "diff")
    with pytest.raises(FormatError, match=r"expected 'parallel_fixedram\.plan'"):
        check(good, "plan")
