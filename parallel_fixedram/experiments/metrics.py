"""Which time of a sample is meant, and run sets whose numbers are numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.experiments import results
from parallel_fixedram.experiments.cases import BOOTS
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample


class Metric(StrEnum):
    """A time that every way may tell."""

    TOTAL = "total"
    LAST_WRITE = "last_write"
    PAUSE = "pause"

    def of(self, sample: Sample) -> float | None:
        """Seconds; None where the way cannot tell."""
        value: float | None = getattr(sample.seconds, self.value)
        return value


_MEANINGS = {
    Metric.TOTAL: "until everything is on stable storage",
    Metric.LAST_WRITE: "until the last page is written",
    Metric.PAUSE: "while the guest stands still",
}
_RUNNING = "until all guests run"


def meaning(metric: Metric, cases: Iterable[CaseResult] = ()) -> str:
    """What the time of these cases ends with, for people; of saves unless told otherwise."""
    ways = {str(case.parameters.get("way")) for case in cases}
    if metric is not Metric.TOTAL or not ways & {*BOOTS}:
        return _MEANINGS[metric]
    return _RUNNING if ways <= {*BOOTS} else f"{_MEANINGS[metric]}, or {_RUNNING}"


def seconds(case: CaseResult, metric: Metric) -> list[float]:
    """The samples that tell this time, in the order of their numbers."""
    return [value for sample in case.samples if (value := metric.of(sample)) is not None]


def load(path: str) -> RunSet:
    """Read a run set, and make sure that its times and sizes can be reckoned with.

    Raises:
        RequestError: there is no such file.
        HostError: it cannot be read.
        FormatError: it is not a run set.
    """
    run_set = results.load(path)
    for name, value in _tables(run_set):
        if not isinstance(value, Mapping):
            raise FormatError(f"{name}: expected an object, got {type(value).__name__}").in_file(path)
    for name, value in _texts(run_set):
        if not isinstance(value, str):
            raise FormatError(f"{name}: expected a text, got {type(value).__name__}").in_file(path)
    for case in run_set.cases:
        for sample in case.samples:
            for name, value in _figures(sample):
                if not _is_figure(value):
                    place = f"case {case.id!r}, sample {sample.number}"
                    raise FormatError(f"{place}: {name} is {value!r}, expected a number from 0 on").in_file(path)
    return run_set


def _tables(run_set: RunSet) -> Iterator[tuple[str, Any]]:
    yield "host", run_set.host
    yield "versions", run_set.versions
    for case in run_set.cases:
        yield f"parameters of case {case.id!r}", case.parameters


def _texts(run_set: RunSet) -> Iterator[tuple[str, Any]]:
    for name in ("name", "question", "text"):
        yield name, getattr(run_set.scenario, name)
    for case in run_set.cases:
        yield "id of a case", case.id
    for each in run_set.missing:
        yield "missing way", each.way
        yield "why a way is missing", each.why


def _figures(sample: Sample) -> Iterator[tuple[str, Any]]:
    for name in ("total", "last_write", "pause", "wall"):
        if (value := getattr(sample.seconds, name)) is not None or name == "total":
            yield name, value
    phases = sample.seconds.phases
    if isinstance(phases, Mapping):
        yield from phases.items()
    elif phases is not None:
        yield "phases", repr(phases)
    for name in ("ram", "data", "written", "file", "allocated"):
        if (value := getattr(sample.bytes, name)) is not None or name == "ram":
            yield f"{name} bytes", value


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
