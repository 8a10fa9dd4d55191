"""What the command prints: results on stdout; errors and notes on stderr, which may be closed without an error.

With ``--json`` there is one object on stdout, or one about the error on stderr, and nothing else on either: notes are
in the reports. With ``--quiet`` there is nothing but errors. How far a command is, is told by ``progress``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.cli.folding import folded
from parallel_fixedram.core.schemas import stamped, to_json

PROGRAM = "parallel-fixedram"


@dataclass(slots=True)
class Manner:
    """How the command that runs in this process was told to talk."""

    as_json: bool = False
    quiet: bool = False
    progress: str = "auto"
    """``auto``, ``bar``, ``json`` or ``none``."""


MANNER = Manner()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, which is as ``stamped`` makes it."""
    print(json.dumps(value, indent=2))


def print_report(report: Any, as_text: Callable[[Any], None], *, as_json: bool) -> None:
    """A report: one JSON object, or what ``as_text`` prints of it."""
    if as_json:
        print_json(to_json(report))
    else:
        as_text(report)


def complain(code: int, message: str, hint: str = "") -> None:
    """Say why the command ends with ``code``: one line, and at most one line of hint, or one JSON object."""
    if MANNER.as_json:
        _stderr(json.dumps(stamped("error", {"code": code, "message": message, "hint": hint})))
        return
    _stderr(f"{PROGRAM}: error: {message}", *([f"{PROGRAM}: hint: {hint}"] if hint else []))


def warn(message: str) -> None:
    """One line that is no error."""
    if not (MANNER.as_json or MANNER.quiet):
        _stderr(f"{PROGRAM}: {message}")


def print_notes(sentences: Iterable[str]) -> None:
    """What the user should also know, a line each; with --json it is part of the report."""
    for each in sentences:
        warn(f"note: {each}")


def _stderr(*lines: str) -> None:
    # an argument may contain line breaks, and a message may quote it
    whole = (line.replace("\r", "\\r").replace("\n", "\\n") for line in lines)
    text = "".join(folded(line, sys.stderr) + "\n" for line in whole)
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass
