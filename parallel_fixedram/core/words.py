"""Words that name one of a few things, and words of strangers."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from parallel_fixedram.core.errors import RequestError

MOST_CHARACTERS = 200
"""Of a text by a stranger, in a message."""

Choice = TypeVar("Choice", bound=StrEnum)


def choice(kind: type[Choice], value: str, name: str) -> Choice:
    """The member of ``kind`` that ``value`` is.

    Raises:
        RequestError: there is none; says which there are.
    """
    try:
        return kind(value)
    except ValueError as error:
        raise RequestError(f"{name} is {value!r}, expected one of {', '.join(kind)}") from error


def shown(text: str) -> str:
    """A stranger's text as one short line of printable characters."""
    cut = text.strip()[: MOST_CHARACTERS + 1]
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."
