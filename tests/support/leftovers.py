"""What this process has open, and its children: to see that a test leaves none behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from support import prepared


def descriptors() -> set[tuple[str, str]]:
    """Number and target of every open descriptor."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def children() -> set[int]:
    """Process ids of all children, those that have ended and were not waited for included; not of tests' own server."""
    lists = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return {int(pid) for each in lists for pid in each.split()} - {prepared.server()}
