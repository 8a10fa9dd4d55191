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
    """An ``__enter__`` that calls ``__exit__`` if it fails, whatever with: nobody else does where ``__enter__`` raised.

    ``__exit__`` must cope with what is half there.
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
