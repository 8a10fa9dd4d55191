"""Series on axes that are both logarithmic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.pictures.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_APART = 1.25


def log_log(
    drawn: drawing.Sheet, axes: Axes, lines: Sequence[Series], *, open_marks: Callable[[Series], bool] | None = None
) -> None:
    """Draw the series: medians as lines, samples as dots, ticks of the x axis where there are points.

    Args:
        drawn: gets the legend.
        axes: where to.
        lines: positive numbers in both directions.
        open_marks: which series have hollow marks; none if None.
    """
    axes.set_xscale("log")
    for number, line in enumerate(lines):
        look = style.line_style(number)
        if open_marks is not None and open_marks(line):
            look |= {"markerfacecolor": "white"}
        x, y = [point.x for point in line.points], [point.middle for point in line.points]
        drawn.legend(axes.plot(x, y, **look)[0], line.label)
        for point in line.points:
            style.dots(axes, [point.x] * len(point.samples), point.samples, look["color"])
    style.plain_numbers(axes, "x", apart([point.x for line in lines for point in line.points]))
    style.log_y(axes)
    style.grid(axes)


def apart(values: Sequence[float]) -> list[float]:
    """Values at which a logarithmic axis has room for numbers: each at least ``_APART`` times the one before."""
    found: list[float] = []
    for value in sorted(set(values)):
        if not found or value >= found[-1] * _APART:
            found.append(value)
    return found
