"""What each worker did when: seconds to the right, places in the file upwards.

A shard is a box as high as the part of the file that was written. If that would be too low to be seen, it is a line in
the colour of its worker: solid if something was written, dotted if pages were only looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from parallel_fixedram.core.units import GIB
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.results import CaseResult, RunSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "time-lines"
MAX_PICTURES = 12
"""Of the first cases that were watched."""
_NAMED = 16
"""Workers that the legend names; further ones look like the first ones again."""
_LOWEST = 0.006
"""Height of the lowest box, as a share of the axis."""

Shard = tuple[int, float, float, int, int]
"""Worker, start and end in seconds, offset in the file, bytes written."""


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each case that was watched.

    Raises:
        NotDrawnError: none was.
    """
    cases = [case for case in run_set.cases if case.instrumented and case.instrumented.timeline]
    if not cases:
        raise drawing.NotDrawnError("no case has an instrumented run")
    return [_picture(run_set, case, number) for number, case in enumerate(cases[:MAX_PICTURES], 1)]


def _picture(run_set: RunSet, case: CaseResult, number: int) -> drawing.Picture:
    assert case.instrumented is not None
    shards = case.instrumented.timeline
    drawn = drawing.sheet(height=4.6)
    [axes] = drawn.axes
    first = min(offset for *_, offset, _ in shards)
    height = max(max(offset + size for *_, offset, size in shards) - first, 1)
    for place, worker in enumerate(sorted({worker for worker, *_ in shards})):
        _worker(drawn, axes, place, worker, [shard for shard in shards if shard[0] == worker], height * _LOWEST)
    axes.set_ylim((first - height * 0.03) / GIB, (first + height * 1.03) / GIB)
    axes.set_xlim(0, max(end for _, _, end, _, _ in shards) * 1.02)
    axes.set_xlabel("time since the save began, s")
    axes.set_ylabel("place in the file, GiB")
    style.grid(axes)
    return drawing.finish(
        drawn,
        run_set,
        f"{NAME}-{number}",
        "Which worker writes or looks where, and when?",
        subject=case.id,
        note="one instrumented run, apart from the samples; lines are shards that are too low for a box",
    )


def _worker(drawn: drawing.Sheet, axes: Axes, place: int, worker: int, shards: Iterable[Shard], lowest: float) -> None:
    """Draw what a worker did; ``place`` is its number among all of them."""
    from matplotlib.patches import Rectangle

    colour = style.COLOURS[place % len(style.COLOURS)]
    look = style.area_style(place) | {"edgecolor": colour}
    for _, start, end, offset, size in shards:
        if size >= lowest:
            box = axes.add_patch(Rectangle((start, offset / GIB), end - start, size / GIB, **look))
            _name(drawn, box, place, f"worker {worker}, written")
        else:
            # with round ends even a shard that took no time shows as a dot
            dashes = "-" if size else (0, (0.1, 1.6))
            [line] = axes.plot(
                [start, end],
                [offset / GIB] * 2,
                color=colour,
                linestyle=dashes,
                linewidth=2.4,
                solid_capstyle="round",
                dash_capstyle="round",
                gid=f"worker {worker}",
            )
            _name(drawn, line, place, f"worker {worker}, {'little written' if size else 'looked at, nothing to write'}")


def _name(drawn: drawing.Sheet, handle: object, place: int, label: str) -> None:
    if place < _NAMED:
        drawn.legend(handle, label)
