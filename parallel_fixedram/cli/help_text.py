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

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for kind, group in groupby(text.splitlines(), _kind):
            some = list(group)
            if kind == "paragraph":
                some = textwrap.wrap(" ".join(some), width, break_on_hyphens=False, break_long_words=False)
            lines += some
        return "".join(f"{indent}{line}\n" for line in lines)


def _kind(line: str) -> str:
    if not line.strip():
        return "blank"
    return "as it is" if line.startswith("  ") or line.endswith(":") else "paragraph"
