"""How ``--help`` is laid out: paragraphs are filled to the width of the terminal, indented lines stay as they are."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from itertools import groupby
from typing import Any

MAX_COLUMNS = 100
"""Longer lines are hard to read, however wide a terminal is."""


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

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for kind, group in groupby(_with_kinds(text.splitlines()), lambda pair: pair[0]):
            some = [line for _, line in group]
            if kind == "paragraph":
                some = textwrap.wrap(" ".join(some), width, break_on_hyphens=False, break_long_words=False)
            lines += some
        return "".join(f"{indent}{line}\n" for line in lines)


def _with_kinds(lines: list[str]) -> list[tuple[str, str]]:
    """What each line is part of: an indented line, and a head above one, stay as they are."""
    found: list[tuple[str, str]] = []
    below = ""
    for line in reversed(lines):
        if not line.strip():
            below = "blank"
        elif not (line.startswith("  ") or (line.endswith(":") and below == "as it is")):
            below = "paragraph"
        else:
            below = "as it is"
        found.append((below, line))
    return found[::-1]
