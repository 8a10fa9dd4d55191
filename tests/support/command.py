"""What the command reports, for tests that need no more of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from support.cli import Result, call

from parallel_fixedram.verbs.save import NO_VMGENID


def report(*arguments: object, code: int = 0, by: Callable[..., Result] = call) -> dict[str, Any]:
    """Run a verb with ``--json`` and hold it to its exit code; returns the object it prints.

    Args:
        arguments: the verb and what follows it.
        code: expected exit code.
        by: ``support.cli.call``, or ``support.cli.run`` for a process of its own.
    """
    words = [*map(str, arguments)]
    words.insert(words.index("--") if "--" in words else len(words), "--json")
    result = by(*words)
    assert result.code == code, result
    return result.json


def happenings(notes: Iterable[str]) -> list[str]:
    """The notes of a save but for what every machine without a vmgenid device is told."""
    return [note for note in notes if note != NO_VMGENID]
