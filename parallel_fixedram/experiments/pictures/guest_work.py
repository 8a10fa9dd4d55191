"""What a guest gets done over time, way by way, with save and pause marked; and how long its gaps are.

::

    left: a band for each way, its pace before the run 1     right: gaps in the run, by how many are shorter
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parallel_fixedram.experiments.guest_work import MARGIN_SECONDS, STEP_SECONDS
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.pictures.series import case_labels, groups, source_text
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample
from parallel_fixedram.experiments.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "guest-work"
_BY = ("guest", "qemu")
_SHOWN_BEFORE, _SHOWN_AFTER = 0.3, 0.3
"""Seconds around the longest save."""
_BAND = 0.62
"""Height of the pace before the run, in bands."""
_GAPS = (
    ("p50", "o", "half of the gaps are shorter"),
    ("p90", "s", "90 %"),
    ("p99", "^", "99 %"),
    ("longest", "D", "longest"),
)


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each guest that was watched.

    Raises:
        NotDrawnError: none was.
    """
    cases = [case for case in run_set.cases if any(sample.work for sample in case.samples)]
    if not cases:
        raise drawing.NotDrawnError("no guest was watched")
    return [_picture(run_set, where, group, number) for number, (where, group) in enumerate(groups(cases, _BY), 1)]


def typical(case: CaseResult) -> Sample:
    """The sample whose lost work is that of the middle one."""
    found = sorted((each for each in case.samples if each.work), key=lambda each: each.seconds.lost or 0.0)
    return found[(len(found) - 1) // 2]


def _picture(run_set: RunSet, where: Mapping[str, Any], cases: Sequence[CaseResult], number: int) -> drawing.Picture:
    drawn = drawing.sheet(2, height=0.62 * len(cases) + 0.9, share_y=True)
    left, right = drawn.axes
    labels = case_labels(cases, not_in_name=_BY)
    for place, case in enumerate(cases):
        _band(drawn, left, len(cases) - 1 - place, typical(case))
        _dots(drawn, right, len(cases) - 1 - place, case)
    left.set_yticks([len(cases) - 1 - place + _BAND / 2 for place in range(len(cases))], labels, fontsize=8)
    left.set_ylim(-0.15, len(cases))
    longest = max(_shown(typical(case)) for case in cases)
    left.set_xlim(-_SHOWN_BEFORE, longest)
    left.set_xlabel("time since that began, s")
    right.set_xlabel("time without any work done, s")
    right.set_xscale("log")
    right.xaxis.set_major_formatter(style.plain_formatter())
    for axes in (left, right):
        style.grid(axes)
        axes.grid(visible=False, axis="y")
    return drawing.finish(
        drawn,
        run_set,
        f"{NAME}-{number}",
        "What does the guest get done while it is saved or started, and how long are its gaps?",
        subject=source_text(where),
        samples=[len(case.samples) for case in cases],
        note="bands: of each way the sample that lost neither most nor least",
    )


def _shown(sample: Sample) -> float:
    """Until when it is drawn, seconds since its save began: a start until its guest has settled."""
    begin, end = _save(sample)
    return max(end + _SHOWN_AFTER, sample.watch.run[1] if sample.watch else 0.0) - begin


def _save(sample: Sample) -> tuple[float, float]:
    """When the save was, seconds from the first step on; of older results all of the run."""
    if sample.watch is not None:
        return sample.watch.save or sample.watch.run
    return MARGIN_SECONDS, len(sample.work or ()) * STEP_SECONDS - MARGIN_SECONDS


def _band(drawn: drawing.Sheet, axes: Axes, bottom: float, sample: Sample) -> None:
    """Work of a sample above ``bottom``, against its pace before the run; the save begins at 0."""
    from matplotlib.patches import Rectangle

    steps = sample.work or ()
    begin, end = _save(sample)
    pace = median(steps[: int(MARGIN_SECONDS / STEP_SECONDS)]) or 1.0
    times = [step * STEP_SECONDS - begin for step in range(len(steps))]
    heights = [bottom + min(each / pace, 1.45) * _BAND for each in steps]
    work = axes.fill_between(times, bottom, heights, step="post", color=style.COLOURS[0], alpha=0.85, linewidth=0)
    drawn.legend(work, "work done in 10 ms")
    line = axes.hlines(bottom + _BAND, times[0], times[-1], colors="#666666", linewidth=0.7, linestyles=":")
    drawn.legend(line, "pace before")
    whole = sample.watch is None or sample.watch.save is None
    saved = axes.hlines(bottom - 0.06, 0, end - begin, colors=style.COLOURS[1], linewidth=2.6, capstyle="butt")
    drawn.legend(saved, "run, process start included" if whole else "save, to stable storage; or start, until it runs")
    if sample.watch is not None and sample.watch.pause is not None:
        start, stop = (each - begin for each in sample.watch.pause)
        box = Rectangle((start, bottom), stop - start, 0.95, facecolor=style.COLOURS[3], alpha=0.5, edgecolor="#333333")
        drawn.legend(axes.add_patch(box), "pause")


def _dots(drawn: drawing.Sheet, axes: Axes, bottom: float, case: CaseResult) -> None:
    """Gaps of a case, medians over its samples; of older results only the longest."""
    watches = [sample.watch for sample in case.samples if sample.watch is not None]
    for number, (name, marker, label) in enumerate(_GAPS):
        if watches:
            value = median([getattr(watch.gaps, name) for watch in watches])
        elif name == "longest":
            value = median([sample.seconds.gap or 0.0 for sample in case.samples])
        else:
            continue
        if value > 0:
            [dot] = axes.plot([value], [bottom + _BAND / 2], marker, markersize=6.5, color=style.COLOURS[number])
            drawn.legend(dot, label)
