"""Tables and long lines that fold where the terminal is narrower; what goes into a file or a pipe is never folded."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

_LEAST_COLUMNS = 40
"""A text that would get less room after what comes before it goes below."""
_INDENT = " " * 6
NO_BREAK = "\N{NO-BREAK SPACE}"
_UNITS = r"[KMGTPE]?i?B(?:/s)?|[mnµ]?s|min|h|d|%|[KMG]?Hz|(?:byte|page|channel|second)s?"
_NUMBER = re.compile(rf"(?<=\d) (?=(?:{_UNITS})(?!\w))")
"""The space between a number and its unit."""


def _columns(stream: TextIO) -> int | None:
    """Of the terminal that a stream is, as COLUMNS or itself says; None if it is none, or does not say."""
    if not stream.isatty():
        return None
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def folded(text: str, stream: TextIO) -> str:
    """A line as it goes to a stream: below its beginning, further in than that, is what it has no room for."""
    room = _columns(stream)
    if room is None or len(text) <= room:
        return text
    indent = text[: len(text) - len(text.lstrip(" "))]
    return _filled(text[len(indent) :], room, indent, indent + "  ")


def print_folded(text: str) -> None:
    """A line on stdout, as ``folded`` has it."""
    print(folded(text, sys.stdout))


def print_hanging(head: str, text: str) -> None:
    """A line of ``head`` and ``text``; where it is too long the text goes on below its own beginning.

    Args:
        head: spaces at its end are the distance to the text.
        text: is divided between words.
    """
    room = _columns(sys.stdout)
    if room is None or len(head + text) <= room:
        print(head + text)
        return
    if room - len(head) < _LEAST_COLUMNS:
        if head.strip():
            print(head.rstrip())
        head = _INDENT
    print(_filled(text, room, head, " " * len(head)))


def print_named(name: str, text: str) -> None:
    """A line of a report: what it is about, and what is said of that, below its like."""
    print_hanging(f"  {name:<10}", text)


def print_table(template: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A line a row; where one is too long every row is its first cell and below it what the others are, by name.

    Args:
        template: ``str.format`` makes a line of it, from the cells of a row or from ``heads``.
        heads: names of the columns.
        rows: as many cells each; an empty one is not named.
    """
    lines = [template.format(*cells).rstrip() for cells in (heads, *rows)]
    room = _columns(sys.stdout)
    if room is None or max(map(len, lines)) <= room:
        print("\n".join(lines))
        return
    for row in rows:
        print(f"{heads[0]} {row[0]}")
        named = ", ".join(f"{head}={cell}" for head, cell in zip(heads[1:], row[1:], strict=True) if cell)
        print(_filled(named, room, "  ", "  "))


def wrap(text: str, room: int, first: str = "", others: str = "") -> list[str]:
    """Lines of a text that have at most ``room`` characters, divided between words, but not between number and unit.

    Args:
        text: words with one space in between; NO_BREAK between those that belong together.
        room: a word that is longer gets a longer line.
        first: what the first line begins with.
        others: what all others begin with.
    """
    lines = textwrap.wrap(
        _NUMBER.sub(NO_BREAK, text),
        room,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace(NO_BREAK, " ") for line in lines]


def _filled(text: str, room: int, first: str, others: str) -> str:
    return "\n".join(wrap(text, room, first, others))
