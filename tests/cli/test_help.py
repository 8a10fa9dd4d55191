"""``--help`` of every verb, and that the examples in it work."""

import argparse
import re
import shlex

import pytest
from support.cli import call, done, run, untouched

from parallel_fixedram.cli.bench import COMMANDS
from parallel_fixedram.cli.help_text import HelpFormatter
from parallel_fixedram.cli.main import VERBS, build_parser
from parallel_fixedram.machines.builtin.spec import Workload

SMALL = {"1GiB": "4MiB", "256MiB": "2MiB"}
"""An example shows off; here a fraction of it has to do."""


def examples(verb):
    """The example lines of a verb's help text, without the name of the program."""
    text = done(call(verb, "--help")).out.partition("example")[2].replace("\\\n", "")
    lines = text.splitlines()
    found = [shlex.split(line)[1:] for line in lines if line.startswith("  parallel-fixedram ")]
    assert found, f"{verb} has no example"
    assert all(argv[0] == verb for argv in found)
    return found


def rewritten(argv, folder):
    """An example that keeps to a scratch folder and to small sizes."""
    if argv == ["demo"]:
        return ["demo", "--size", "2MiB", "--folder", str(folder)]
    text = shlex.join(argv)
    for size, smaller in SMALL.items():
        text = text.replace(size, smaller)
    for root in ("/var/tmp", "/tmp", "/dev/shm", "/backup"):
        text = text.replace(root, "SCRATCH")
    return shlex.split(text.replace("SCRATCH", str(folder)))


def test_the_help_of_the_command_names_every_verb():
    result = done(run("--help"))
    for verb in VERBS:
        assert f"\n    {verb} " in result.out
    assert result.err == ""


def parsers(parser=None, name=()):
    """The parser of the command and of every verb, and what is behind the name of the program to get its help."""
    parser = parser or build_parser()
    yield name, parser
    for action in parser._actions:
        for verb, each in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            yield from parsers(each, (*name, verb))


EVERY_VERB = [" ".join(name) for name, _ in parsers()]


@pytest.mark.parametrize("verb", EVERY_VERB)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_help_text_keeps_to_the_width_of_the_terminal(verb, columns, monkeypatch):
    """And where the terminal is very wide it stays readable."""
    monkeypatch.setenv("COLUMNS", str(columns))
    text = done(call(*verb.split(), "--help")).out
    assert text.startswith(f"usage: {f'parallel-fixedram {verb}'.strip()} ")
    wanted = ["--quiet", "--debug", "--help"] + (["--json"] if verb not in ("", "bench") else [])
    assert [option for option in wanted if option not in text] == []
    assert max(map(len, text.splitlines())) <= min(columns, 100)


def test_the_verbs_of_bench_have_their_help_too():
    assert {f"bench {command}" for command in COMMANDS} < set(EVERY_VERB)


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_what_a_help_text_says_is_the_same_however_it_is_folded(verb, monkeypatch):
    """But for the backslashes of commands to copy, and for where a list of options is divided."""
    said = []
    for columns in (40, 60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        said.append(done(call(*verb.split(), "--help")).out.replace("\\\n", " ").split())
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("columns", range(40, 101, 3))
def test_a_number_stands_with_its_unit(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "\n\n".join(each.format_help() for _, each in parsers())
    units = r"(?:MiB|%|channels)"
    assert re.search(rf"\d {units}", text), "there is something to part"
    assert re.findall(rf"\d\n *{units}", text) == []


def test_a_paragraph_is_filled_wherever_its_lines_end_and_heads_of_indented_lines_stay(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "A line that is too long ends:\nthe paragraph does not.\n\nhead:\nanother head:\n  as  it  is\nhead:\n  more"
    parser = argparse.ArgumentParser(description=text, formatter_class=HelpFormatter, add_help=False, usage="u")
    assert parser.format_help().splitlines()[2:] == [
        "A line that is too long",
        "ends: the paragraph does",
        "not.",
        "",
        "head:",
        "another head:",
        "  as  it  is",
        "head:",
        "  more",
    ]


def test_the_help_text_names_every_workload_of_the_built_in_guest():
    text = " ".join(done(call("save", "--help")).out.split())
    assert f"the built-in guest: {', '.join(list(Workload)[:-1])} or {list(Workload)[-1]}," in text


def test_the_examples_work_in_the_order_in_which_people_try_them(tmp_path):
    """Only what an example takes for granted is made first: RAM to save, and two files to compare.

    Those with a QEMU are left to tests/qemu, those with libvirt to tests/libvirt.
    """
    (tmp_path / "vm-ram").write_bytes(bytes(8192))
    for name in ("before", "after"):
        done(call("save", tmp_path / f"{name}.mr", "--guest", "dense,size=1MiB"))
    for verb in ("plan", "save", "restore", "verify", "inspect", "diff", "demo", "caps", "doctor", "clean"):
        for argv in examples(verb):
            if {"--qmp", "--libvirt", "--"} & set(argv):
                continue
            result = call(*rewritten(argv, tmp_path))
            # one example of caps shows a refusal lifted, none shows a refusal
            assert result.code == 0, (argv, result)
    assert {path.name for path in tmp_path.iterdir()} == {
        "vm-ram", "before.mr", "after.mr", "guest.mr", "vm.mr", "restored",
    }  # fmt: skip


def test_help_does_not_write_anything_anywhere(tmp_path):
    """To look for a temporary folder is to write a file into it."""
    for argv in (["--help"], ["demo", "--help"]):
        with untouched(tmp_path):
            done(run(*argv, fresh=True, env={"TMPDIR": str(tmp_path)}))


def test_without_arguments_the_help_is_shown():
    result = call()
    assert (result.code, result.err) == (2, "")
    assert result.out == done(call("--help")).out


@pytest.mark.parametrize(
    ("written", "hint"), [("sav", "'save'"), ("clones", "'clone'"), ("x", "there are demo, save, ")]
)
def test_a_verb_that_there_is_not_is_answered_with_those_that_there_are(written, hint):
    result = call(written, "FILE")
    assert result.code == 2
    assert result.err.splitlines()[0] == f"parallel-fixedram: error: there is no verb {written!r}"
    assert hint in result.err.splitlines()[1]
