"""What comes of something for another user, who is nobody's friend."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from support.puppet import Puppet

NOBODY = 65534


def as_nobody(act: Callable[[], Any]) -> Any:
    """What comes of it in a process of that user; skips the test where nobody can become that."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with Puppet(act, first=lambda: os.setresuid(NOBODY, NOBODY, NOBODY)) as process:
        return process.call()
