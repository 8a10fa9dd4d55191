"""Each test of the fault matrix ends with nobody and nothing left."""

from __future__ import annotations

import pytest
from support.leftovers import be_alone


def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(be_alone())


@pytest.fixture(autouse=True)
def _nothing_is_left(nothing_is_left: None) -> None:
    """Whatever failed."""
