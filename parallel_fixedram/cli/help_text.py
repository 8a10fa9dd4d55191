"""How ``--help`` is laid out: all of it fits the width of the terminal, and commands can still be copied."""

from __future__ import annotations

import argparse
import re
import shutil
from itertools import groupby
from typing import Any

from parallel_fixedram.cli.folding import NO_BREAK, wrap

MAX_COLUMNS = 100
"""Longer lines are hard to read, however wide a terminal is."""

_USAGE = "usage: "
_BRACKETS = re.compile(r"\[(?:[^][]|\[[^][]*\])*\]")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class HelpFormatter(argparse.HelpFormatter):
    """The formatter of every parser."""

    def __init__(self, prog: str, **options: Any) -> None:
        columns = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
        super().__init__(prog, **{"width": columns - 2, "max_help_position": 26, **options})

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for verbs, whose indentation argparse forgets to count."""
        super().add_argument(action)
        for verb in self._iter_indented_subactions(action):
            length = len(self._format_action_invocation(verb)) + self._current_indent
            self._action_max_length = max(self._action_max_length, length)

    def _format_usage(self, usage: str | None, *others: Any) -> str:
        """Fold the usage again where argparse leaves a line that is longer than the terminal is wide."""
        text = super()._format_usage(usage, *others)
        plain = _COLOR.sub("", text)
        if max(map(len, plain.splitlines())) <= self._width:
            return text
        ways = plain.removeprefix(_USAGE).splitlines() if usage else [" ".join(plain.removeprefix(_USAGE).split())]
        lines: list[str] = []
        for way in filter(None, map(str.strip, ways)):
            whole = _BRACKETS.sub(lambda found: found[0].replace(" ", NO_BREAK), way)
            first = " " * len(_USAGE) if lines else _USAGE
            lines += wrap(whole, self._width, first, " " * (len(_USAGE) + 4))
        return "\n".join(lines) + "\n\n"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for kind, group in groupby(_with_kinds(text.splitlines()), lambda pair: pair[0]):
            some = [line for _, line in group]
            if kind == "paragraph":
                lines += wrap(" ".join(some), width)
            elif kind == "command":
                lines += _folded_commands(some, width)
            else:
                lines += [part for line in some for part in wrap(line, width) or [""]]
        return "".join(f"{indent}{line}\n" for line in lines)


def _with_kinds(lines: list[str]) -> list[tuple[str, str]]:
    """What each line is part of: a command is indented, and the head above one is a line of its own."""
    found: list[tuple[str, str]] = []
    below = ""
    for line in reversed(lines):
        if not line.strip():
            below = "blank"
        elif line.startswith("  "):
            below = "command"
        elif line.endswith(":") and below in ("command", "head"):
            below = "head"
        else:
            below = "paragraph"
        found.append((below, line))
    return found[::-1]


def _folded_commands(lines: list[str], width: int) -> list[str]:
    """Commands, which may continue after a backslash; one that is too wide is divided elsewhere."""
    folded: list[str] = []
    for command in re.findall(r"(?:.*\\\n)*.+", "\n".join(lines)):
        if max(map(len, command.splitlines())) <= width:
            folded += command.splitlines()
            continue
        words = " ".join(command.replace("\\\n", " ").split())
        *others, last = wrap(words, width - len(" \\"), "  ", "      ")
        folded += [*(f"{part} \\" for part in others), last]
    return folded
