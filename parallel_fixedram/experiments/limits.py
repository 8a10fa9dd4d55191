"""How far our times are from the least that is possible, both measured in the same rounds.

::

    to stable storage   fio of the same number of bytes, the fastest of its ways, on the same file system
    reading RAM         one pass of one process over the same RAM, divided among the workers (``scan``)
    pause               stop, device state and cont, without any RAM (``pause-floor``)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample
from parallel_fixedram.experiments.statistics import Ratio, median, paired_ratio

Value = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """A phase of a case of ours, and its limit."""

    phase: str
    case: str
    limit: str
    """Id of the case that is the limit."""
    seconds: float
    """Median of ours."""
    limit_seconds: float
    """Median of the limit, for the same number of workers."""
    ratio: Ratio
    """Ours divided by the limit, of the same rounds."""


def limits(run_set: RunSet) -> list[Limited]:
    """Every phase of a case of ours that a limit was measured for, in the order of the cases."""
    return [
        found for case in run_set.cases if case.parameters.get("way") == "ours" for found in _of(case, run_set.cases)
    ]


def _of(case: CaseResult, cases: Sequence[CaseResult]) -> Iterator[Limited]:
    if case.parameters.get("rounds") or case.parameters.get("dirty"):
        return  # they save more than RAM as it is, or less
    own = [each for each in cases if _source(each) == _source(case)]
    channels = int(case.parameters.get("channels") or 1)
    fios = [each for each in own if each.parameters.get("way") == "fio" and _place(each) == _place(case)]
    scans = [each for each in own if each.parameters.get("way") == "scan"]
    floors = [each for each in own if each.parameters.get("way") == "pause-floor"]
    if case.parameters.get("durability") != "none":
        yield from _limited("to stable storage", case, _total, fios, _total)
    yield from _limited("reading RAM", case, _scan, scans, lambda sample: sample.seconds.total / channels)
    yield from _limited("pause", case, _pause, floors, _pause)


def _source(case: CaseResult) -> tuple[object, object]:
    return case.parameters.get("guest"), case.parameters.get("qemu")


def _place(case: CaseResult) -> tuple[object, object]:
    return case.parameters.get("file_system"), case.parameters.get("cache")


def _total(sample: Sample) -> float | None:
    return sample.seconds.total


def _scan(sample: Sample) -> float | None:
    return (sample.seconds.phases or {}).get("scan")


def _pause(sample: Sample) -> float | None:
    return sample.seconds.pause


def _limited(
    phase: str, case: CaseResult, ours: Value, others: Sequence[CaseResult], theirs: Value
) -> Iterator[Limited]:
    """The phase against the fastest of the others; nothing if either is not known."""
    mine = _by_round(case, ours)
    told = [(each, found) for each in others if (found := _by_round(each, theirs))]
    if not mine or not told:
        return
    limit, its = min(told, key=lambda pair: median(list(pair[1].values())))
    both = [number for number in mine if number in its]
    if both:
        yield Limited(
            phase=phase,
            case=case.id,
            limit=limit.id,
            seconds=median(list(mine.values())),
            limit_seconds=median(list(its.values())),
            ratio=paired_ratio([its[number] for number in both], [mine[number] for number in both]),
        )


def _by_round(case: CaseResult, value: Value) -> Mapping[int, float]:
    """Positive values by the number of their round."""
    return {sample.number: found for sample in case.samples if (found := value(sample)) is not None and found > 0}
