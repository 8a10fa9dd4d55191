"""Handlers that are served a turn at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from support.served_handler import Served


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """``Served``, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(contextlib.closing(Served(**how)))


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def tight(serve: Callable[..., Served]) -> Served:
    """With room for one group in the ring."""
    return serve(slots=1)
