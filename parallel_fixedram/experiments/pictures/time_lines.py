"""What each worker wrote when: seconds to the right, places in the file upwards, a rectangle for each shard."""

from __future__ import annotations

from parallel_fixedram.core.units import GIB
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.results import CaseResult, RunSet

NAME = "time-lines"
MAX_PICTURES = 12
"""Of the first cases that were watched."""
_NAMED = 16
"""Workers that the legend names; the next ones look like the first ones again."""


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
    from matplotlib.patches import Rectangle

    assert case.instrumented is not None
    shards = case.instrumented.timeline
    workers = sorted({worker for worker, *_ in shards})
    drawn = drawing.sheet(height=4.6)
    [axes] = drawn.axes
    edge_width = 0.6 if len(shards) <= 300 else 0.15
    for worker, start, end, offset, size in shards:
        look = style.area_style(workers.index(worker)) | {"linewidth": edge_width}
        place = (start, offset / GIB)
        axes.add_patch(Rectangle(place, end - start, size / GIB, **look))
    for each in workers[:_NAMED]:
        drawn.legend(Rectangle((0, 0), 1, 1, **style.area_style(workers.index(each))), f"worker {each}")
    first = min(offset for *_, offset, _ in shards)
    last = max(offset + size for *_, offset, size in shards)
    edge = max((last - first) / GIB * 0.02, 1e-6)
    axes.set_ylim(first / GIB - edge, last / GIB + edge)
    axes.set_xlim(0, max(end for _, _, end, _, _ in shards) * 1.02)
    axes.set_xlabel("time since the save began, s")
    axes.set_ylabel("place in the file, GiB")
    style.grid(axes)
    return drawing.finish(
        drawn,
        run_set,
        f"{NAME}-{number}",
        "Which worker writes where, and when?",
        subject=case.id,
        note="one instrumented run, apart from the samples",
    )
