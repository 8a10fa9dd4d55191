"""What context managers share: entering that is undone if it fails, and leaving that closes."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

M = TypeVar("M", bound=AbstractContextManager[Any])


def undone_if_it_fails(enter: Callable[[M], M]) -> Callable[[M], M]:
    """An ``__enter__`` that calls ``__exit__`` if it fails in any way, because ``with`` does not.

    ``__exit__`` must be able to clean up what is half done.
    """

    @functools.wraps(enter)
    def entered(manager: M) -> M:
        try:
            return enter(manager)
        except BaseException as error:
            manager.__exit__(type(error), error, error.__traceback__)
            raise

    return entered


class Closing(ABC):
    """A context manager that closes itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""
