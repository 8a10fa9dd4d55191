"""What the fault matrix has tried, row by row, told at the end."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.examples import seed
from support.leftovers import children, descriptors
from support.stages import Count

ROW = "row of the fault matrix"
MOUNTED = re.compile("/(cut|served|crash)-")
"""Those of these tests; others come and go."""


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Says how many faults of a row a test has tried."""

    def noted(row: str, number: int) -> None:
        record_property(ROW, (row, number))

    return noted


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever failed: descriptors, userfaultfds among them, processes, mounts and run folders are those of before."""
    before = everything()
    yield
    assert everything() == before


def everything() -> dict[str, object]:
    return {
        "descriptors": descriptors(),
        "children": children(),
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if MOUNTED.search(line)],
        "run folders": sorted(os.listdir(os.environ["XDG_RUNTIME_DIR"])),
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows, seconds = Counter[str](), Counter[str]()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        tried = [value for name, value in report.user_properties if name == ROW and report.when == "call"]
        for row, number in tried:
            rows[row] += number
            seconds[row] += report.duration / len(tried)
    if rows:
        terminalreporter.section(f"fault matrix, seed {seed()}")
        for row in rows:
            terminalreporter.line(f"{rows[row]:8} {row} ({seconds[row]:.0f} s)")
