"""How lines, dots, areas and axes look: also different in marker, dashes and hatching, to be readable in grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b3c5d", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f7f00", "#7b3294", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
HATCHES = ("", "///", "\\\\\\", "...", "xxx", "---", "|||", "ooo", "+++", "//..", "\\\\||")
PALE = ("#c6dbef", "#fdd0a2", "#c7e9c0", "#dadaeb", "#fee391", "#d9d9d9", "#fbb4b9", "#b3e2cd")


def line_style(number: int) -> dict[str, Any]:
    """How the line of that number looks: no two of the first 70 alike, also in grey."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.6,
        "markersize": 6,
    }


def dots(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """All samples, small and pale."""
    axes.plot(x, y, linestyle="none", marker=".", markersize=4, color=colour, alpha=0.55, zorder=1.5)


def plain_numbers(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Ticks at these values of a logarithmic axis, and no others."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
    axis.set_minor_locator(NullLocator())


def grid(axes: Axes) -> None:
    """Faint lines to read values by."""
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def sample_line(look: dict[str, Any]) -> Any:
    """A line for the legend alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)


def area(axes: Axes, number: int, **place: Any) -> Any:
    """A horizontal bar that looks like the area of that number."""
    return axes.barh(**place, **area_style(number))


def area_style(number: int) -> dict[str, Any]:
    """How the area of that number looks: pale, hatched and with an edge."""
    return {
        "facecolor": PALE[number % len(PALE)],
        "hatch": HATCHES[number % len(HATCHES)],
        "edgecolor": "#333333",
        "linewidth": 0.6,
    }


def plain_formatter(*, few: bool = False) -> Any:
    """Numbers without powers of ten; of the minor ones only 2 and 5 times a power of ten, if ``few``."""
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _position: int | None = None) -> str:
        if few and f"{value:.0e}"[0] not in "25":
            return ""
        return f"{value:g}"

    return FuncFormatter(text)


def whole_numbers(axes: Axes, values: Sequence[int]) -> None:
    """Ticks of the x axis at whole numbers, not more than there is room for."""
    axes.set_xticks(list(values)[:: max(-(-len(values) // 24), 1)])


def log_y(axes: Axes) -> None:
    """A logarithmic y axis of at least a decade, so that small changes look small and ticks have room."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    missing = max(10 / (high / low), 1.0) ** 0.5
    axes.set_ylim(low / missing, high * missing)
    axes.yaxis.set_major_formatter(plain_formatter())
    axes.yaxis.set_minor_formatter(plain_formatter(few=True))
    axes.tick_params(axis="y", which="minor", labelsize=7)
