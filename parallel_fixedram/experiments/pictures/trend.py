"""A time of a case, commit after commit: medians with the range of their samples, levels, and where they change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from parallel_fixedram.core.units import format_size
from parallel_fixedram.experiments.history import Trend
from parallel_fixedram.experiments.metrics import meaning
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "trend"
MAX_PICTURES = 12
"""Those with steps come first."""
_MOST_TICKS = 24


def draw(trends: Sequence[Trend]) -> list[drawing.Picture]:
    """A picture for each trend of two entries or more; only the first ones if there are very many.

    Raises:
        NotDrawnError: there is none.
    """
    shown = sorted((each for each in trends if len(each.entries) > 1), key=lambda each: not each.steps)
    if not shown:
        raise drawing.NotDrawnError("no case was measured twice on one host")
    return [_picture(each, number) for number, each in enumerate(shown[:MAX_PICTURES], 1)]


def _picture(trend: Trend, number: int) -> drawing.Picture:
    drawn = drawing.sheet(height=3.8)
    [axes] = drawn.axes
    samples = [entry.seconds[trend.metric] for entry in trend.entries]
    places = range(len(samples))
    look = style.line_style(0)
    lows = [middle - min(each) for middle, each in zip(trend.medians, samples, strict=True)]
    highs = [max(each) - middle for middle, each in zip(trend.medians, samples, strict=True)]
    points = axes.errorbar(
        places,
        trend.medians,
        yerr=[lows, highs],
        **(look | {"linestyle": "none"}),
        elinewidth=0.9,
        capsize=2.5,
    )
    drawn.legend(points, "median, and least to most of its samples")
    _levels(drawn, axes, trend)
    axes.set_ylim(min(0.0, min(map(min, samples)) * 1.12), max(map(max, samples)) * 1.12)
    axes.set_ylabel(f"time {meaning(trend.metric)}, s", fontsize=8)
    axes.set_xlabel("commit, in the order in which they were measured")
    apart = -(-len(samples) // _MOST_TICKS)
    ticks = list(places)[::apart]
    commits = [(trend.entries[place].commit or "unknown")[:8] for place in ticks]
    axes.set_xticks(ticks, commits, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    style.grid(axes)
    return drawing.finish_with_foot(
        drawn,
        [_host(trend), _steps(trend)],
        f"{NAME}-{number}",
        "Did it become faster or slower?",
        subject=f"{trend.scenario}: {trend.case}",
    )


def _levels(drawn: drawing.Sheet, axes: Axes, trend: Trend) -> None:
    """A line for each level, and one between the commits where it changes."""
    edges = [0, *(step.place for step in trend.steps), len(trend.entries)]
    for begin, end in pairwise(edges):
        level = median(trend.medians[begin:end])
        line = axes.hlines(level, begin - 0.45, end - 0.55, colors=style.COLOURS[1], linewidth=2.2, zorder=1.4)
        drawn.legend(line, "level: median from step to step")
    for step in trend.steps:
        edge = axes.axvline(step.place - 0.5, color=style.COLOURS[7], linestyle="--", linewidth=1.1)
        drawn.legend(edge, "step")
        axes.annotate(
            f"{step.after / step.before:.2f} times",
            (step.place - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            fontsize=8,
        )


def _host(trend: Trend) -> str:
    host = trend.entries[-1].host
    memory = host.get("memory")
    size = format_size(memory) if isinstance(memory, int) else "unknown"
    others = f"; {trend.left_out} entries of other hosts left out" if trend.left_out else ""
    return f"host: {host.get('cpu_model', 'unknown')}, {host.get('cpus', '?')} processors, {size} of memory{others}"


def _steps(trend: Trend) -> str:
    if not trend.steps:
        return f"{len(trend.entries)} entries, no step found (Pettitt's test, p < 0.01)"
    commits = [(trend.entries[step.place].commit or "unknown")[:8] for step in trend.steps]
    found = "; ".join(
        f"{step.before * 1000:.4g} to {step.after * 1000:.4g} ms at {commit}"
        for step, commit in zip(trend.steps, commits, strict=True)
    )
    return f"{len(trend.entries)} entries; steps (Pettitt's test, p < 0.01): {found}"
