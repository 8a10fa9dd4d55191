"""The fault matrix: fixtures by which a test says what it has tried, what that took, and that nothing is left; told
at the end, row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from support.examples import seed
from support.leftovers import nothing_left

RUNS_ON = "a guest runs on by itself after a kill"
ROW = "row of the fault matrix"
LONGEST = "longest, seconds"

Count = Callable[[str, int], None]
"""Says how many faults of a row of the matrix a test has tried."""
Took = Callable[[str, float], None]
"""Says how many seconds something took, of which the longest time is told."""


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    def noted(row: str, number: int) -> None:
        record_property(ROW, (row, number))

    return noted


@pytest.fixture
def took(record_property: Callable[[str, object], None]) -> Took:
    def noted(what: str, seconds: float) -> None:
        record_property(LONGEST, (what, seconds))

    return noted


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Whatever failed: nobody and nothing is left."""
    with nothing_left():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows, seconds, longest = Counter[str](), Counter[str](), dict[str, list[float]]()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when != "call":
            continue
        tried = [value for name, value in report.user_properties if name == ROW]
        for row, number in tried:
            rows[row] += number
            seconds[row] += report.duration / len(tried)
        for what, took in (value for name, value in report.user_properties if name == LONGEST):
            longest.setdefault(what, []).append(took)
    if rows or longest:
        terminalreporter.section(f"fault matrix, seed {seed()}")
    for row in rows:
        terminalreporter.line(f"{rows[row]:8} {row} ({seconds[row]:.0f} s)")
    for what, times in longest.items():
        terminalreporter.line(f"{len(times):8} {what}: {max(times) * 1000:.1f} ms at most")
