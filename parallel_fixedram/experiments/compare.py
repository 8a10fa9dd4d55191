"""Compare two run sets, case by case: by what factor a time changed, and how sure that is.

Cases are matched by their ids. The two sets were not measured in turn, so a drift of the machine between them looks
like a change of the program. Host facts that differ are listed, but a host that was merely busier goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.experiments.metrics import Metric, seconds
from parallel_fixedram.experiments.results import CaseResult, RunSet
from parallel_fixedram.experiments.statistics import Ratio, Summary, ratio_of_medians, summary

THRESHOLD = 1.05
"""A case that certainly takes more than this many times as long is a regression."""

_CHANGES_BY_ITSELF = ("free", "available", "used", "load", "mhz", "uptime")
"""Host facts with one of these words in their name differ between any two runs."""
_OURS = "parallel_fixedram"
"""The version that is compared, and so may differ."""


_OF_A_HOST = ("cpu_model", "cpus", "physical_cpus", "machine", "memory")
"""Facts that identify a host. Kernel, disk and load are not among them: they change; ``compare`` warns of that."""
_SAME_MEMORY = 1 / 32
"""Share by which memory may differ: how much a kernel keeps for itself varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseComparison:
    """A case that both run sets measured."""

    id: str
    first: Summary
    """Seconds."""
    second: Summary
    ratio: Ratio
    """Second by first."""
    regression: bool
    """Whether the whole interval lies above the threshold."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        ratio = self.ratio
        return {
            "id": self.id,
            "median_a": self.first.median,
            "median_b": self.second.median,
            "samples": list(ratio.samples),
            "ratio": ratio.value,
            "interval": None if ratio.low is None else [ratio.low, ratio.high],
            "verdict": str(ratio.verdict),
            "why": ratio.why,
            "regression": self.regression,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two run sets, case by case."""

    metric: Metric
    threshold: float
    cases: tuple[CaseComparison, ...]
    """In the order of the first run set."""
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    not_told: tuple[str, ...]
    """Ids of cases in both, of which one has no sample that tells this time."""
    warnings: tuple[str, ...]

    @property
    def regressions(self) -> tuple[CaseComparison, ...]:
        """The cases that became slower by more than the threshold."""
        return tuple(case for case in self.cases if case.regression)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "metric": str(self.metric),
            "threshold": self.threshold,
            "cases": [case.to_json() for case in self.cases],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "not_told": list(self.not_told),
            "warnings": list(self.warnings),
            "regressions": [case.id for case in self.regressions],
        }


def compare(
    first: RunSet, second: RunSet, *, metric: Metric = Metric.TOTAL, threshold: float = THRESHOLD
) -> Comparison:
    """Check ``second`` against ``first``.

    Args:
        first: what was before.
        second: what is now.
        metric: which time.
        threshold: factor from which on a slower case is a regression, at least 1.
    """
    before, after = ({case.id: case for case in run_set.cases} for run_set in (first, second))
    both = [case_id for case_id in before if case_id in after]
    found = {case_id: _compare_case(before[case_id], after[case_id], metric, threshold) for case_id in both}
    return Comparison(
        metric=metric,
        threshold=threshold,
        cases=tuple(case for case in found.values() if case is not None),
        only_in_a=tuple(case_id for case_id in before if case_id not in after),
        only_in_b=tuple(case_id for case_id in after if case_id not in before),
        not_told=tuple(case_id for case_id, case in found.items() if case is None),
        warnings=tuple(_warnings(first, second)),
    )


def host_facts_of(host: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that identify a host, of all facts about it."""
    return {name: host[name] for name in _OF_A_HOST if host.get(name) is not None}


def same_host(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether facts are of one host, or of two that are alike; facts that one of them lacks make no difference."""
    return not _differences(first, second)


def other_host(first: RunSet, second: RunSet) -> list[str]:
    """How the hosts of two run sets differ, a few words each; empty for the same host, or one like it.

    Facts that one of them lacks make no difference.
    """
    a, b = first.host, second.host
    return [f"{name} ({_shown(a[name])} and {_shown(b[name])})" for name in _differences(a, b)]


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of what makes them different hosts."""
    both = [name for name in _OF_A_HOST if a.get(name) is not None and b.get(name) is not None]
    return [name for name in both if not _alike(name, a[name], b[name])]


def _alike(name: str, first: Any, second: Any) -> bool:
    if name == "memory" and isinstance(first, int) and isinstance(second, int):
        return abs(first - second) <= max(first, second) * _SAME_MEMORY
    return bool(first == second)


def _compare_case(first: CaseResult, second: CaseResult, metric: Metric, threshold: float) -> CaseComparison | None:
    a, b = seconds(first, metric), seconds(second, metric)
    if not a or not b or not min(a + b) > 0:  # a pause of 0: the guest was already stopped
        return None
    ratio = ratio_of_medians(a, b)
    return CaseComparison(
        id=first.id,
        first=summary(a),
        second=summary(b),
        ratio=ratio,
        regression=ratio.low is not None and ratio.low > threshold,
    )


def _warnings(first: RunSet, second: RunSet) -> Iterator[str]:
    if first.scenario.text != second.scenario.text:
        yield "the scenarios differ, so the two may not have measured the same"
    for name, run_set in (("first", first), ("second", second)):
        if run_set.finished is None:
            yield f"the {name} run set is not finished"
    facts = [{"host": run_set.host, "version": dict(run_set.versions)} for run_set in (first, second)]
    a, b = (dict(_flat(fact)) for fact in facts)
    for name in sorted(a.keys() | b.keys()):
        last = name.rpartition(" ")[2]
        if last == _OURS or any(word in last for word in _CHANGES_BY_ITSELF):
            continue
        if a.get(name) != b.get(name):
            yield f"{name} differs: {_shown(a.get(name))} and {_shown(b.get(name))}"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
