"""Time of a round over the share of dirty pages, one line for each rule of joining writes over gaps."""

from __future__ import annotations

from parallel_fixedram.experiments.pictures import drawing
from parallel_fixedram.experiments.pictures.lines import log_log
from parallel_fixedram.experiments.pictures.series import (
    groups,
    parameter_text,
    place_text,
    sample_counts,
    series,
    source_text,
)
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample

NAME = "gaps"
_TITLE = "How long the round over the dirty pages takes, by their share and the rule for gaps"
_BY = ("guest", "qemu", "file_system", "direct_io")


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each source, file system and kind of writes.

    Raises:
        NotDrawnError: nothing was measured with two shares of dirty pages.
    """
    found: list[drawing.Picture] = []
    for where, group in groups((case for case in run_set.cases if case.parameters.get("dirty")), _BY):
        lines = series(group, _share, _round_seconds, not_in_name=("dirty", *_BY), always=("gap_pages",))
        if not any(len(line.points) > 1 for line in lines):
            continue
        drawn = drawing.sheet()
        log_log(drawn, drawn.axes[0], lines)
        drawn.axes[0].set_xlabel("share of the pages that are dirty, scattered at random (1 = all)")
        drawn.axes[0].set_ylabel("time of the round over the dirty pages, s")
        kind = parameter_text("direct_io", where["direct_io"])
        subject = f"{source_text(where)}, to {place_text(run_set, where)}, {kind}"
        name, title = f"{NAME}-{len(found) + 1}", _TITLE
        found.append(drawing.finish(drawn, run_set, name, title, subject=subject, samples=sample_counts(lines)))
    if not found:
        raise drawing.NotDrawnError("no case was measured with two shares of dirty pages")
    return found


def _share(case: CaseResult) -> float:
    return float(case.parameters["dirty"])


def _round_seconds(sample: Sample) -> float | None:
    """The second round alone."""
    return sample.seconds.last_write or None
