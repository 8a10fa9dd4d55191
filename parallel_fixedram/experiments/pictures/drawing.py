"""What all pictures share: a title (what is seen), axes with units, a legend that covers nothing, a foot line.

::

    +------------------------------+
    | title                        |
    | axes           axes          |
    +------------------------------+
    |  legend, in as many columns as its labels allow
    |  host, commit, samples       |
    +------------------------------+

matplotlib is imported when a picture is drawn and not before, through its objects and without pyplot, so no state is
left behind.
"""

from __future__ import annotations

import importlib
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.units import format_size
from parallel_fixedram.experiments.results import RunSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
DOTS_PER_INCH = 130
INSTALL = "pip install 'parallel-fixedram[bench]'"


_WIDTH = 9.6
"""Inches."""
_TITLE_POINTS, _SUBJECT_POINTS, _LEGEND_POINTS, _FOOT_POINTS = 11.5, 9.0, 8.0, 6.5
_LINE = 1.5 / 72
"""Height of a line of text in inches, by its size in points."""
_LETTER = 0.6
"""Mean width of a letter, as a share of its size in points; rather too large."""


class NotDrawnError(Exception):
    """The results have no data for this picture; says what is missing. Never leaves this package."""


def require_matplotlib() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise RequestError("pictures need matplotlib, which is not installed", hint=INSTALL) from error


@dataclass(slots=True, kw_only=True)
class Sheet:
    """A picture in the making."""

    figure: Figure
    axes: list[Axes]
    entries: list[tuple[Any, str]] = field(default_factory=list)
    """Of the legend: a line or an area, and its label."""

    def legend(self, handle: Any, label: str) -> None:
        """Add an entry unless there is one of that label."""
        if label not in (other for _, other in self.entries):
            self.entries.append((handle, label))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished picture."""

    name: str
    """Becomes the end of its file's name."""
    figure: Figure
    title: str


def sheet(panels: int = 1, *, height: float = 4.2, share_y: bool = False) -> Sheet:
    """An empty picture with some axes side by side; its height is that of the axes, inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=DOTS_PER_INCH)
    return Sheet(figure=figure, axes=list(figure.subplots(1, panels, squeeze=False, sharey=share_y)[0]))


def finish(
    drawn: Sheet,
    run_set: RunSet,
    name: str,
    title: str,
    *,
    subject: str = "",
    samples: Sequence[int] = (),
    note: str = "dots are samples, lines and bars medians",
) -> Picture:
    """Put title, legend and foot around the axes.

    Args:
        drawn: with its axes done.
        run_set: what the data is from.
        name: of the picture.
        title: what the picture shows.
        subject: what the picture is about, if there are others that ask the same.
        samples: how many samples each point or bar has; none where it shows none.
        note: how to read it.
    """
    return finish_with_foot(drawn, _foot(run_set, samples, note), name, title, subject=subject)


def finish_with_foot(drawn: Sheet, foot: Sequence[str], name: str, title: str, *, subject: str = "") -> Picture:
    """Like ``finish``, with foot lines that do not come from one run set."""
    figure = drawn.figure
    heading = [(line, _TITLE_POINTS) for line in textwrap.wrap(title, 95)]
    heading += [(line, _SUBJECT_POINTS) for line in textwrap.wrap(subject, 130)]
    foot = [line for part in foot for line in textwrap.wrap(part, 165)]
    columns = _legend_columns(drawn)
    rows = -(-len(drawn.entries) // columns)
    plain = figure.get_figheight()
    below = rows * 0.16 + (0.2 if rows else 0) + len(foot) * 0.135 + 0.12
    above = sum(points * _LINE for _, points in heading) + 0.1
    total = plain + above + below
    figure.set_figheight(total)
    figure.set_layout_engine("constrained", rect=(0.005, below / total, 0.99, plain / total))
    # laid out once without legend and foot, so that these cannot move the axes
    down = 0.08
    for text, points in heading:
        figure.text(0.5, 1 - down / total, text, ha="center", va="top", fontsize=points, gid="title", parse_math=False)
        down += points * _LINE
    for line, text in enumerate(reversed(foot)):
        y = (0.07 + line * 0.135) / total
        figure.text(0.012, y, text, fontsize=_FOOT_POINTS, color="#444444", gid="foot", parse_math=False)
    if drawn.entries:
        _draw_legend(drawn, columns, top=(below - 0.02) / total)
    return Picture(name=name, figure=figure, title=title)


def _legend_columns(drawn: Sheet) -> int:
    """How many columns the longest label leaves room for."""
    longest = max((len(label) for _, label in drawn.entries), default=0)
    column = longest * _LEGEND_POINTS * _LETTER / 72 + 0.75
    return max(int((_WIDTH - 0.4) / column), 1)


def _draw_legend(drawn: Sheet, columns: int, top: float) -> None:
    """Put the legend below the axes; ``top`` is a share of the figure's height."""
    handles, labels = zip(*drawn.entries, strict=True)
    legend = drawn.figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=columns,
        fontsize=_LEGEND_POINTS,
        frameon=False,
        handlelength=3.2,
        borderpad=0.2,
        labelspacing=0.35,
    )
    legend.set_in_layout(False)
    for label in legend.get_texts():
        label.set_parse_math(False)


def _foot(run_set: RunSet, samples: Sequence[int], note: str) -> list[str]:
    count = str(min(samples, default=0))
    if samples and min(samples) < max(samples):
        count = f"{count} to {max(samples)}"
    return [
        host_line(run_set.host),
        f"commit {short_commit(run_set.commit)}, runs {run_set.scenario.name!r} of {run_set.started}; "
        + (f"n = {count} samples a point, " if samples else "")
        + note,
    ]


def host_line(host: Mapping[str, Any]) -> str:
    """A host in a line of the foot."""
    cpu = host.get("cpu_model") or (host.get("cpu") if isinstance(host.get("cpu"), str) else None)
    memory = host.get("memory")
    disk = host.get("disk")
    model = disk.get("model") or disk.get("device") if isinstance(disk, dict) else disk
    facts = [
        str(cpu or host.get("machine") or "unknown processor"),
        f"{host.get('cpus', '?')} processors",
        f"{format_size(memory)} of memory" if isinstance(memory, int) else "memory unknown",
        f"{host.get('file_system') or 'unknown file system'} on {model or 'an unknown disk'}",
        f"Linux {host.get('kernel', '?')}",
    ]
    return "host: " + ", ".join(facts)


def short_commit(commit: str | None) -> str:
    """Enough of the commit to identify it, with the mark of changed files."""
    commit = commit or "unknown"
    return commit[:12] + ("+" if len(commit) > 12 and commit.endswith("+") else "")


def save(picture: Picture, stem: str) -> list[str]:
    """Write a picture as PNG and SVG, the same bytes for the same data.

    Args:
        picture: what to write.
        stem: path without the ending.

    Returns:
        The paths.

    Raises:
        HostError: they cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(picture.figure)
    paths = [f"{stem}.{ending}" for ending in FORMATS]
    for path, ending in zip(paths, FORMATS, strict=True):
        metadata: dict[str, Any] = {"Date": None} if ending == "svg" else {"Software": None}
        try:
            with mpl.rc_context({"svg.hashsalt": "parallel-fixedram"}):
                picture.figure.savefig(path, format=ending, metadata=metadata)
        except OSError as error:
            raise HostError.from_os(f"cannot write {path!r}", error) from error
    return paths


def make_folder(path: str) -> None:
    """Create a folder unless it is there.

    Raises:
        RequestError: it is something else.
        HostError: it cannot be created.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RequestError(f"{path!r} is not a folder") from error
    except OSError as error:
        raise HostError.from_os(f"cannot create {path!r}", error) from error


def file_stem(text: str) -> str:
    """A name for a file: what is neither letter, digit, dot nor dash becomes a dash."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "results"
