"""Time over the size of RAM: does it grow with RAM, or with what is in it?"""

from __future__ import annotations

from dataclasses import replace

from parallel_fixedram.core.units import GIB
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.pictures import drawing
from parallel_fixedram.experiments.pictures.lines import log_log
from parallel_fixedram.experiments.pictures.series import (
    Series,
    groups,
    place_text,
    sample_counts,
    series,
    whole_saves,
    without_size,
)
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample
from parallel_fixedram.experiments.statistics import median

NAME = "scaling"
_TITLE = "How long a save takes, by size of RAM"
SPARSE = 0.5
"""A guest with less data than this share of its RAM is called sparse."""


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each file system.

    Raises:
        NotDrawnError: nothing was measured with two sizes of RAM.
    """
    cases = whole_saves(run_set)
    found: list[drawing.Picture] = []
    for where, group in groups(cases, ("file_system",)):
        lines = series(group, _size, _total, not_in_name=("file_system",), normal=without_size)
        if not any(len(line.points) > 1 for line in lines):
            continue
        # a single point of a sparse guest is worth showing next to the dense ones, other single points are not
        lines = [_named(line) for line in lines if len(line.points) > 1 or _is_sparse(line)]
        drawn = drawing.sheet()
        [axes] = drawn.axes
        log_log(drawn, axes, lines, open_marks=_is_sparse)
        axes.set_xlabel("size of RAM, GiB")
        axes.set_ylabel("time until everything is on stable storage, s")
        name, title, subject = f"{NAME}-{len(found) + 1}", _TITLE, place_text(run_set, where)
        found.append(drawing.finish(drawn, run_set, name, title, subject=f"to {subject}", samples=sample_counts(lines)))
    if not found:
        raise drawing.NotDrawnError("no way was measured with two sizes of RAM")
    return found


def _size(case: CaseResult) -> float | None:
    return case.samples[0].bytes.ram / GIB if case.samples and case.samples[0].bytes.ram else None


def _total(sample: Sample) -> float | None:
    return Metric.TOTAL.of(sample) or None


def _named(line: Series) -> Series:
    """The series, with what is sparse about it in its name."""
    if not _is_sparse(line):
        return line
    shares = [_share(point.case) for point in line.points]
    low, high = min(shares), max(shares)
    text = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
    return replace(line, label=f"{line.label} (sparse: {text} of RAM is data)")


def _is_sparse(line: Series) -> bool:
    return all(_share(point.case) < SPARSE for point in line.points)


def _share(case: CaseResult) -> float:
    """Share of RAM that is data; 1 where it is not told."""
    told = [sample.bytes.data / sample.bytes.ram for sample in case.samples if sample.bytes.data is not None]
    return median(told) if told else 1.0
