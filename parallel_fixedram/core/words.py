"""Words that name one of a few things."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from parallel_fixedram.core.errors import RequestError

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
