"""How long a guest that is watched got nothing done at a time: the share of gaps that are as long or longer, by way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.latency import Bins, added, upper_end
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.pictures.series import case_labels, groups, source_text
from parallel_fixedram.experiments.results import CaseResult, RunSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "stalls"
_BY = ("guest", "qemu")
_QUIET = "before and after the runs"


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each guest that was watched.

    Raises:
        NotDrawnError: none was, or the results are older than bins.
    """
    cases = [case for case in run_set.cases if any(_bins(case))]
    if not cases:
        raise drawing.NotDrawnError("no gaps of a guest were counted by their length")
    return [_picture(run_set, where, group, number) for number, (where, group) in enumerate(groups(cases, _BY), 1)]


def share_as_long(bins: Bins) -> list[tuple[float, float]]:
    """For the shorter end of each bin that holds something, seconds, the share that is at least as long."""
    at_least = list(accumulate(reversed(bins)))[::-1]
    return [
        (upper_end(number - 1) if number else 0.0, left / at_least[0])
        for number, (count, left) in enumerate(zip(bins, at_least, strict=True))
        if count
    ]


def _picture(run_set: RunSet, where: Mapping[str, Any], cases: Sequence[CaseResult], number: int) -> drawing.Picture:
    drawn = drawing.sheet()
    [axes] = drawn.axes
    for place, (case, label) in enumerate(zip(cases, case_labels(cases, not_in_name=_BY), strict=True)):
        _line(drawn, axes, _bins(case), label, style.line_style(place))
    quiet = added(sample.watch.quiet.bins for case in cases for sample in case.samples if sample.watch)
    _line(drawn, axes, quiet, _QUIET, {"color": "#888888", "linestyle": "-", "linewidth": 3.0, "alpha": 0.6})
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(style.plain_formatter())
    style.log_y(axes)
    axes.set_xlabel("time without any work done, s")
    axes.set_ylabel("share of the gaps that are as long or longer (1 = all)")
    style.grid(axes)
    return drawing.finish(
        drawn,
        run_set,
        f"{NAME}-{number}",
        "How long does the guest get nothing done at a time, while it is saved or started?",
        subject=source_text(where),
        samples=[len(case.samples) for case in cases],
        note="gaps of all samples together, by powers of two",
    )


def _bins(case: CaseResult) -> Bins:
    return added(sample.watch.gaps.bins for sample in case.samples if sample.watch)


def _line(drawn: drawing.Sheet, axes: Axes, bins: Bins, label: str, look: dict[str, Any]) -> None:
    points = [(time, share) for time, share in share_as_long(bins) if time]
    if points:
        [line] = axes.plot([time for time, _ in points], [share for _, share in points], **look)
        drawn.legend(line, label)
