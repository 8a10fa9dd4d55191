"""How long the guest stands still, and how long all of it takes, for each way; ours divided into its phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel_fixedram.experiments.metrics import Metric, meaning, seconds
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.pictures.series import case_labels, groups, place_text, source_text
from parallel_fixedram.experiments.results import CaseResult, RunSet
from parallel_fixedram.experiments.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "pauses"
_TITLE = "How long the guest stands still, and how long all of a save takes, by way"
MAX_ROWS = 18
"""Bars of one picture; more make another one."""

_IN_PAUSE = ("stop", "ram", "device_state", "cont")
_IN_TOTAL = ("prepare", "pause", "digest", "sync", "publish")
_REST = "rest"
_WHOLE = "whole"
_WORDS = {
    _WHOLE: "not divided",
    "stop": "stop the guest",
    "ram": "last round over RAM",
    "device_state": "device state, beyond the round",
    "cont": "continue the guest",
    "prepare": "prepare",
    "pause": "pause",
    "digest": "digests",
    "sync": "sync",
    "publish": "publish",
    _REST: "the rest",
}
_BY = ("guest", "qemu", "file_system")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One bar in each panel."""

    heading: str
    """Over the first row of a group, else empty."""
    label: str
    case: CaseResult


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """As few pictures as the bars fit into.

    Raises:
        NotDrawnError: no guest stood still.
    """
    cases = [case for case in run_set.cases if any(seconds(case, Metric.PAUSE))]
    if not cases:
        raise drawing.NotDrawnError("no sample has a pause: no guest was running")
    pages: list[list[_Row]] = [[]]
    for where, group in groups(cases, _BY):
        rows = list(_rows(run_set, where, group))
        if pages[-1] and len(pages[-1]) + len(rows) > MAX_ROWS:
            pages.append([])
        pages[-1] += rows
    return [_picture(run_set, rows, number) for number, rows in enumerate(pages, 1)]


def _rows(run_set: RunSet, where: Mapping[str, object], group: Sequence[CaseResult]) -> Iterable[_Row]:
    labels = case_labels(group, not_in_name=_BY, always=("channels",))
    for number, (case, label) in enumerate(zip(group, labels, strict=True)):
        heading = source_text(where)
        if where["file_system"] is not None:
            heading += f", to {place_text(run_set, where)}"
        yield _Row(heading="" if number else heading, label=label, case=case)


def _picture(run_set: RunSet, rows: Sequence[_Row], number: int) -> drawing.Picture:
    headings = sum(bool(row.heading) for row in rows)
    drawn = drawing.sheet(2, height=0.9 + 0.3 * (len(rows) + headings), share_y=True)
    places, place = [], 0.0
    for row in rows:
        place += 1.0 if row.heading else 0.0
        places.append(place)
        if row.heading:
            text = drawn.axes[0].annotate(
                row.heading, (0.0, place - 0.85), xycoords=("axes fraction", "data"), fontsize=8, fontweight="bold",
                va="center", parse_math=False
            )  # fmt: skip
            text.set_in_layout(False)  # it may be as long as both panels, whose rows are empty there
        place += 1
    panels = ((drawn.axes[0], Metric.PAUSE, _IN_PAUSE), (drawn.axes[1], Metric.TOTAL, _IN_TOTAL))
    for axes, metric, names in panels:
        for row, y in zip(rows, places, strict=True):
            _bar(drawn, axes, row.case, metric, names, y)
        axes.set_xlim(left=0)
        axes.set_xlabel("time, s" if metric is Metric.TOTAL else "time, ms")
        axes.set_title(meaning(metric), fontsize=9.5)
        style.grid(axes)
    drawn.axes[0].set_zorder(drawn.axes[1].get_zorder() + 1)
    drawn.axes[0].patch.set_visible(False)
    drawn.axes[0].set_yticks(places, [row.label for row in rows], fontsize=8)
    drawn.axes[0].set_ylim(places[-1] + 0.6, -0.4)
    samples = [len(row.case.samples) for row in rows]
    return drawing.finish(drawn, run_set, f"{NAME}-{number}", _TITLE, samples=samples)


def _bar(drawn: drawing.Sheet, axes: Axes, case: CaseResult, metric: Metric, names: Sequence[str], y: float) -> None:
    unit = 1.0 if metric is Metric.TOTAL else 1000.0
    start = 0.0
    for name, length in _parts(case, metric, names):
        look = list(_WORDS).index(name)
        bars = style.area(axes, look, y=y, width=length * unit, left=start * unit, height=0.62)
        drawn.legend(bars, _WORDS[name])
        start += length
    times = [time * unit for time in seconds(case, metric)]
    axes.plot(times, [y] * len(times), linestyle="none", marker=".", markersize=4.5, color="black", zorder=3)


def _parts(case: CaseResult, metric: Metric, names: Sequence[str]) -> list[tuple[str, float]]:
    """The phases of the sample in the middle; they add up to its time, which medians of phases would not."""
    told = [sample for sample in case.samples if metric.of(sample) is not None]
    if not told:
        return []
    middle = median([metric.of(sample) or 0.0 for sample in told])
    sample = min(told, key=lambda each: abs((metric.of(each) or 0.0) - middle))
    whole = metric.of(sample) or 0.0
    phases = dict(sample.seconds.phases or {})
    if not phases:
        return [(_WHOLE, middle)]
    if "pause" not in phases and sample.seconds.pause is not None:
        phases["pause"] = sample.seconds.pause
    if metric is Metric.PAUSE:  # the device state is taken at the same time as the round
        phases["device_state"] = max(phases.get("device_state", 0.0) - phases.get("ram", 0.0), 0.0)
    parts, left = [], whole
    for name in names:
        length = min(phases.get(name, 0.0), left)
        if length > 0:
            parts.append((name, length))
            left -= length
    return [*parts, (_REST, left)] if left > whole * 1e-3 else parts
