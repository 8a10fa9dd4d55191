"""System calls that fail for the rest of a test."""

from __future__ import annotations

import os
from typing import Any, Protocol

import pytest


class Refuse(Protocol):
    """The fixture ``refuse``."""

    def __call__(self, owner: Any, name: str, error: int) -> None:
        """Have the function ``name`` of a module or class fail with this errno, whatever it is called with."""


def refuse_with(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """``Refuse`` until the test is over."""

    def refuse(owner: Any, name: str, error: int) -> None:
        def refused(*_: object, **__: object) -> Any:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(owner, name, refused)

    return refuse
