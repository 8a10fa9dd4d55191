"""What a terminal shows of lines that are wider than it is; into a pipe they go as they are."""

import io
import sys

import pytest
from support.cli import call, done

from parallel_fixedram.cli import folding
from parallel_fixedram.cli.folding import print_hanging, print_table


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, columns, print_something, *args):
    """What is printed to a terminal of so many columns, or, if that is None, to a pipe."""
    monkeypatch.setenv("COLUMNS", str(columns or 10))
    monkeypatch.setattr(sys, "stdout", out := (Terminal() if columns else io.StringIO()))
    print_something(*args)
    return out.getvalue().splitlines()


TABLE = ("{:<6} {:>4}  {}", ("block", "size", "memory"), [("ram", "16", "a file, /x"), ("rom", "not stored", "")])


@pytest.mark.parametrize("columns", [None, 23])
def test_a_table_that_fits_or_goes_into_a_pipe_is_a_line_a_row(monkeypatch, columns):
    assert shown(monkeypatch, columns, print_table, *TABLE) == [
        "block  size  memory",
        "ram      16  a file, /x",
        "rom    not stored",
    ]


def test_a_table_that_does_not_fit_names_what_is_in_each_row(monkeypatch):
    assert shown(monkeypatch, 22, print_table, *TABLE) == [
        "block ram",
        "  size=16, memory=a",
        "  file, /x",
        "block rom",
        "  size=not stored",
    ]


TEXT = "hangs below its beginning where it is too long for the terminal"


@pytest.mark.parametrize("columns", [None, 8 + len(TEXT)])
def test_a_text_that_fits_or_goes_into_a_pipe_is_one_line(monkeypatch, columns):
    assert shown(monkeypatch, columns, print_hanging, "name    ", TEXT) == ["name    " + TEXT]


def test_a_text_that_does_not_fit_goes_on_below_its_beginning_or_where_there_is_room(monkeypatch):
    assert shown(monkeypatch, 48, print_hanging, "name    ", TEXT) == [
        "name    hangs below its beginning where it is",
        "        too long for the terminal",
    ]
    assert shown(monkeypatch, 47, print_hanging, "name    ", TEXT) == [
        "name",
        "      hangs below its beginning where it is too",
        "      long for the terminal",
    ]


@pytest.mark.parametrize("argv", [["inspect", "a.mr"], ["caps"], ["bench", "list"]], ids=" ".join)
def test_what_the_command_lists_keeps_to_the_terminal(monkeypatch, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    done(call("save", "a.mr", "--guest", "zero,size=4K", "--durability", "none"))
    whole = done(call(*argv)).out
    monkeypatch.setattr(folding, "_columns", lambda: 60)
    folded = done(call(*argv)).out
    assert max(map(len, whole.splitlines())) > 60 >= max(map(len, folded.splitlines()))
