"""Which time of a sample is meant, and run sets whose numbers are numbers."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from parallel_fixedram.experiments.cases import NO_SAVES, STARTS
from parallel_fixedram.experiments.results import CaseResult, Sample


class Metric(StrEnum):
    """A time that every way may tell."""

    TOTAL = "total"
    LAST_WRITE = "last_write"
    PAUSE = "pause"
    LOST = "lost"
    GAP = "gap"
    FIRST_TOUCH = "first_touch"
    SECOND_TOUCH = "second_touch"

    def of(self, sample: Sample) -> float | None:
        """Seconds; None where the way cannot tell."""
        value: float | None = getattr(sample.seconds, self.value)
        return value


_MEANINGS = {
    Metric.TOTAL: "until everything is on stable storage",
    Metric.LAST_WRITE: "until the last page is written",
    Metric.PAUSE: "while the guest stands still",
    Metric.LOST: "of work that the guest did not get done",
    Metric.FIRST_TOUCH: "until all RAM of the guest that was started was read, for the first time",
    Metric.SECOND_TOUCH: "until it was read once more",
    Metric.GAP: "in which the guest got nothing done, at the longest",
}
_RUNNING = "until all guests run"
_CHECKED = "until every page is checked"


def meaning(metric: Metric, cases: Iterable[CaseResult] = ()) -> str:
    """What the time of these cases ends with, for people; of saves unless told otherwise."""
    ways = {str(case.parameters.get("way")) for case in cases}
    if metric is not Metric.TOTAL or not ways & {*NO_SAVES}:
        return _MEANINGS[metric]
    kinds = {_RUNNING: ways & {*STARTS}, _CHECKED: ways & {"verify"}, _MEANINGS[metric]: ways - {*NO_SAVES}}
    return ", or ".join(kind for kind, of_it in reversed(kinds.items()) if of_it)


def seconds(case: CaseResult, metric: Metric) -> list[float]:
    """The samples that tell this time, in the order of their numbers."""
    return [value for sample in case.samples if (value := metric.of(sample)) is not None]
