"""Entering that is undone if it fails: nobody else calls ``__exit__`` where ``__enter__`` raised."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

M = TypeVar("M", bound=AbstractContextManager[Any])


def undone_if_it_fails(enter: Callable[[M], M]) -> Callable[[M], M]:
    """An ``__enter__`` that calls ``__exit__`` if it fails, whatever with; that has to cope with what is half there."""

    @functools.wraps(enter)
    def entered(manager: M) -> M:
        try:
            return enter(manager)
        except BaseException as error:
            manager.__exit__(type(error), error, error.__traceback__)
            raise

    return entered
