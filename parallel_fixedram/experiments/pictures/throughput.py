"""Throughput over channels: ours, the peers, and what the host could do at best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallel_fixedram.core.units import GIB
from parallel_fixedram.experiments.metrics import Metric, meaning
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.pictures.series import (
    Series,
    Value,
    groups,
    moved_bytes,
    place_text,
    sample_counts,
    series,
    source_text,
    way_name,
    whole_saves,
)
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample
from parallel_fixedram.experiments.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "throughput"
_TITLE = "How fast data is written, by number of channels"
_PARTS = ("scan", "copy")
_PANELS = (Metric.LAST_WRITE, Metric.TOTAL)
_NOT_IN_NAME = ("channels", "guest", "qemu", "file_system")


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each source and file system.

    Raises:
        NotDrawnError: nothing was measured with two numbers of channels.
    """
    cases = whole_saves(run_set)
    parts = [case for case in cases if case.parameters.get("way") in _PARTS]
    others = [case for case in cases if case.parameters.get("way") not in _PARTS]
    found: list[drawing.Picture] = []
    for where, group in groups(others, ("guest", "qemu", "file_system")):
        lines = {metric: _lines(group, metric) for metric in _PANELS}
        if any(len(line.points) > 1 for each in lines.values() for line in each):
            same = [
                case for case in parts if all(case.parameters.get(each) == where[each] for each in ("guest", "qemu"))
            ]
            subject = f"{source_text(where)}, to {place_text(run_set, where)}"
            found.append(_picture(run_set, subject, lines, same, len(found)))
    if not found:
        raise drawing.NotDrawnError("no way was measured with two numbers of channels")
    return found


def _rate(metric: Metric) -> Value:
    def rate(sample: Sample) -> float | None:
        time = metric.of(sample)
        return moved_bytes(sample) / time / GIB if time else None

    return rate


def _lines(cases: Sequence[CaseResult], metric: Metric) -> list[Series]:
    def channels(case: CaseResult) -> float:
        return float(case.parameters.get("channels") or 1)  # what knows no channels is one writer

    return series(cases, channels, _rate(metric), not_in_name=_NOT_IN_NAME, always=("direct_io",))


def _picture(
    run_set: RunSet, subject: str, lines: dict[Metric, list[Series]], parts: Sequence[CaseResult], number: int
) -> drawing.Picture:
    drawn = drawing.sheet(len(_PANELS), share_y=True)
    labels = list(dict.fromkeys(line.label for each in lines.values() for line in each))
    top = max(max(point.samples) for each in lines.values() for line in each for point in line.points) * 1.08
    everywhere = sorted({point.x for each in lines.values() for line in each for point in line.points})
    for axes, metric in zip(drawn.axes, _PANELS, strict=True):
        axes.set_xscale("log", base=2)
        for line in lines[metric]:
            look = style.line_style(labels.index(line.label))
            x, y = [point.x for point in line.points], [point.middle for point in line.points]
            drawn.legend(axes.plot(x, y, **look)[0], line.label)
            for point in line.points:
                style.dots(axes, [point.x] * len(point.samples), point.samples, look["color"])
        _roofline(drawn, axes, parts, lines[metric], metric, top)
        axes.set_ylim(0, top)
        style.plain_numbers(axes, "x", everywhere)
        axes.set_xlabel("channels (worker processes or jobs)")
        axes.set_title(meaning(metric), fontsize=9.5)
        style.grid(axes)
    drawn.axes[0].set_ylabel("data written, GiB/s")
    samples = sample_counts(line for each in lines.values() for line in each)
    return drawing.finish(drawn, run_set, f"{NAME}-{number + 1}", _TITLE, subject=subject, samples=samples)


def _roofline(
    drawn: drawing.Sheet, axes: Axes, parts: Sequence[CaseResult], lines: list[Series], metric: Metric, top: float
) -> None:
    """Horizontal lines; one above the picture is only named."""
    best = max((point.middle for line in lines if line.way == "fio" for point in line.points), default=None)
    rates = [("fio, best", best)] if best is not None else []
    for case in parts:
        values = [rate for sample in case.samples if (rate := _rate(Metric.TOTAL)(sample)) is not None]
        if values and metric is _PANELS[0]:  # it is the same for both
            rates.append((way_name(str(case.parameters["way"])), median(values)))
    for number, (label, rate) in enumerate(rates):
        look = {"color": "#555555", "linewidth": 1.0, "linestyle": style.DASHES[3 + number % 4]}
        if label != "fio, best":
            text = f"{label}: {rate:.1f} GiB/s" + (", above the picture" if rate > top else "")
        else:
            text = "fio, best number of jobs"
        line = axes.axhline(rate, zorder=1, **look)
        if rate > top:
            line.set_visible(False)
        drawn.legend(style.sample_line(look), text)
