"""What a terminal shows of lines that are wider than it is; into a pipe they go as they are."""

import ast
from pathlib import Path

import pytest
from support.cli import call, done

from parallel_fixedram.cli import folding
from parallel_fixedram.cli.folding import print_folded, print_hanging, print_table
from parallel_fixedram.cli.main import main
from parallel_fixedram.cli.output import complain

CLI = Path(folding.__file__).parent


@pytest.fixture
def shown(terminal, capsys):
    """What is printed to a terminal of so many columns, or, if that is None, to a pipe."""

    def lines(columns, print_something, *args):
        out = terminal("stdout", columns) if columns else None
        print_something(*args)
        return (out.getvalue() if out else capsys.readouterr().out).splitlines()

    return lines


TABLE = ("{:<6} {:>4}  {}", ("block", "size", "memory"), [("ram", "16", "a file, /x"), ("rom", "not stored", "")])


@pytest.mark.parametrize("columns", [None, 23])
def test_a_table_that_fits_or_goes_into_a_pipe_is_a_line_a_row(shown, columns):
    assert shown(columns, print_table, *TABLE) == [
        "block  size  memory",
        "ram      16  a file, /x",
        "rom    not stored",
    ]


def test_a_table_that_does_not_fit_names_what_is_in_each_row(shown):
    assert shown(22, print_table, *TABLE) == [
        "block ram",
        "  size=16, memory=a",
        "  file, /x",
        "block rom",
        "  size=not stored",
    ]


TEXT = "hangs below its beginning where it is too long for the terminal"


@pytest.mark.parametrize("columns", [None, 8 + len(TEXT)])
def test_a_text_that_fits_or_goes_into_a_pipe_is_one_line(shown, columns):
    assert shown(columns, print_hanging, "name    ", TEXT) == ["name    " + TEXT]


def test_a_text_that_does_not_fit_goes_on_below_its_beginning_or_where_there_is_room(shown):
    assert shown(48, print_hanging, "name    ", TEXT) == [
        "name    hangs below its beginning where it is",
        "        too long for the terminal",
    ]
    assert shown(47, print_hanging, "name    ", TEXT) == [
        "name",
        "      hangs below its beginning where it is too",
        "      long for the terminal",
    ]


@pytest.mark.parametrize(
    "argv",
    [
        ["inspect", "a.mr"],
        ["caps"],
        ["bench", "list"],
        ["bench", "smoke", "--dry-run"],
        ["plan", "b.mr", "--guest", "random,size=1MiB", "--channels", "auto", "--experimental-multifd"],
        ["save", "b.mr", "--guest", "hot,size=64KiB", "--capture", "rounds", "--durability", "none"],
        ["restore", "a.mr", "--ram", "pc.ram=ram"],
    ],
    ids=" ".join,
)
def test_what_the_command_says_keeps_to_the_terminal(terminal, monkeypatch, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    done(call("save", "a.mr", "--guest", "zero,size=4K", "--durability", "none"))
    whole = done(call(*argv)).out
    (tmp_path / "b.mr").unlink(missing_ok=True)
    out = terminal("stdout", 60)
    assert main(argv) == 0
    folded = out.getvalue()
    assert max(map(len, whole.splitlines())) > 60 >= max(map(len, folded.splitlines()))


def test_a_line_goes_on_further_in_than_it_begins_and_no_word_is_divided(shown):
    assert shown(20, print_folded, "  the file /a/very-long-name/of-one is") == [
        "  the file",
        "    /a/very-long-name/of-one",
        "    is",
    ]


@pytest.mark.parametrize("amount", ["64 KiB", "1.5 GiB/s", "25 ms", "0.4 s", "95 %", "4096 bytes", "1 page", "3 d"])
def test_a_number_stands_with_its_unit(shown, amount):
    whole = f"it takes {amount}, no more"
    for columns in range(12, len(whole)):
        lines = shown(columns, print_folded, whole)
        assert len(lines) > 1
        assert [line for line in lines if amount in line], lines


def test_a_number_before_another_word_does_not(shown):
    assert shown(12, print_folded, "it takes 25 minors") == ["it takes 25", "  minors"]


def test_errors_fold_where_stderr_is_a_terminal_whatever_stdout_is(terminal):
    out = terminal("stderr", 40)
    complain(2, "a message that is as long as two lines are", "and a hint")
    assert out.getvalue().splitlines() == [
        "parallel-fixedram: error: a message that",
        "  is as long as two lines are",
        "parallel-fixedram: hint: and a hint",
    ]


def test_a_terminal_that_does_not_say_how_wide_it_is_gets_lines_as_they_are(terminal):
    out = terminal("stdout")
    print_folded(TEXT)
    assert out.getvalue() == TEXT + "\n"


AS_IT_IS = {"folding.py", "output.py", "main.py"}
"""Modules that print what is folded already, JSON, or help, which argparse fills."""

TO_BE_COPIED = {"show_plan"}
"""Functions that print command lines and requests, which are copied whole."""


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_nothing_that_may_be_too_long_is_printed_unfolded(path):
    """Only a short text that is always the same goes past the functions that fold."""
    tree = ast.parse(path.read_text())
    copied = {
        id(node) for each in ast.walk(tree) if getattr(each, "name", "") in TO_BE_COPIED for node in ast.walk(each)
    }
    for node in ast.walk(tree):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if is_print and path.name not in AS_IT_IS and id(node) not in copied:
            for text in node.args:
                assert isinstance(text, ast.Constant), f"line {node.lineno}"
                assert len(text.value) <= 60, f"line {node.lineno}"
