"""Figures that others have published, beside what was measured here: as a scenario names them.

::

    [[published]]
    case = "qemu-multifd *"       # a case by its name, as --case takes it
    metric = "total"              # not necessary
    seconds = 96
    by = "QEMU's mapped-ram series, 128 GiB"

They are of other machines and guests. What can be compared is how the rows of one publisher are to each other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments.metrics import Metric, seconds
from parallel_fixedram.experiments.results import CaseResult, RunSet
from parallel_fixedram.experiments.statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigure:
    """A figure that somebody has published."""

    case: str
    """Of which cases it is, by their name, with wildcards."""
    metric: Metric
    seconds: float
    by: str
    """Whose it is, and of what."""

    def to_toml(self) -> dict[str, Any]:
        """As a table of a scenario."""
        return {"case": self.case, "metric": str(self.metric), "seconds": self.seconds, "by": self.by}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A published figure beside ours of the same case."""

    published: PublishedFigure
    case: str
    """Its name."""
    here: float
    """Median, seconds."""
    factor: float
    """How many times the first one of the same publisher and metric it is here."""
    published_factor: float
    """The same of what was published."""


def parse_published(where: str, tables: Any) -> tuple[PublishedFigure, ...]:
    """The figures that a scenario names.

    Raises:
        RequestError: they are no tables, or not of this kind; says where.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RequestError(f"{where}, published: expected tables [[published]]")
    return tuple(_parsed(f"{where}, published {number}", table) for number, table in enumerate(tables, 1))


def _parsed(where: str, table: Mapping[str, Any]) -> PublishedFigure:
    known = ("case", "metric", "seconds", "by")
    for name in table:
        if name not in known:
            raise RequestError(f"{where}, {name}: unknown, expected one of {', '.join(known)}")
    for name in ("case", "by"):
        if not isinstance(table.get(name), str) or not table[name].strip():
            raise RequestError(f"{where}, {name}: expected a text")
    time, metric = table.get("seconds"), table.get("metric", Metric.TOTAL)
    if not isinstance(time, int | float) or isinstance(time, bool) or not 0 < time < 1e9:
        raise RequestError(f"{where}, seconds: expected a number above 0")
    if metric not in list(Metric):
        raise RequestError(f"{where}, metric: expected one of {', '.join(Metric)}")
    return PublishedFigure(case=table["case"], metric=Metric(metric), seconds=float(time), by=table["by"])


def beside(run_set: RunSet) -> list[Beside]:
    """Every figure that the scenario of a run set names and that a case of it has samples for, in their order."""
    try:
        tables = tomllib.loads(run_set.scenario.text).get("published", [])
    except ValueError:  # results that are not of a scenario
        return []
    found = [
        (each, case, median(seconds(case, each.metric)))
        for each in parse_published("results", tables)
        for case in run_set.cases
        if fnmatchcase(case.id, each.case) and seconds(case, each.metric)
    ]
    return [_beside(row, found) for row in found]


def _beside(
    row: tuple[PublishedFigure, CaseResult, float], rows: Sequence[tuple[PublishedFigure, CaseResult, float]]
) -> Beside:
    each, case, here = row
    first, _, first_here = next(other for other in rows if (other[0].by, other[0].metric) == (each.by, each.metric))
    return Beside(
        published=each,
        case=case.id,
        here=here,
        factor=here / first_here,
        published_factor=each.seconds / first.seconds,
    )
