"""A run set that is stored after every change, so that nothing measured is lost, whatever ends the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parallel_fixedram.experiments import planning, results
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.counters import Use
from parallel_fixedram.experiments.results import CaseResult, Instrumented, RunSet, Sample


class Kept:
    """A run set and where it is stored.

    Args:
        run_set: with a place for each case that can be run.
        output: path of the results; replaced by every method that changes them.
    """

    def __init__(self, run_set: RunSet, output: str) -> None:
        self._run_set = run_set
        self._output = output

    def store(self) -> None:
        """Write the results.

        Raises:
            HostError: they cannot be written.
        """
        results.store(self._run_set, self._output)

    def has(self, case: Case) -> bool:
        """Whether the case can be run here, as far as is known."""
        return any(each.id == case.id for each in self._run_set.cases)

    def case(self, case: Case) -> CaseResult:
        """What was measured of a case.

        Raises:
            KeyError: it cannot be run here.
        """
        return self._run_set.case(case.id)

    def ran(self, case: Case, sample: Sample | None) -> None:
        """A case was run; without a sample it was a warm-up."""
        self._run_set = replace(self._run_set, order=(*self._run_set.order, case.id))
        if sample:
            result = self.case(case)
            samples = tuple(sorted((*result.samples, sample), key=lambda each: each.number))
            self._run_set = self._run_set.with_case(replace(result, samples=samples))
        self.store()

    def watched(self, case: Case, instrumented: Instrumented) -> None:
        """A case was run and watched."""
        self._run_set = self._run_set.with_case(replace(self.case(case), instrumented=instrumented))
        self.store()

    def sat(self, use: Use) -> None:
        """The last sitting has ended."""
        *before, last = self._run_set.sittings
        last = replace(
            last, stolen=use.stolen, throttled_seconds=use.throttled_seconds, swapped_pages=use.swapped_pages
        )
        self._run_set = replace(self._run_set, sittings=(*before, last))
        self.store()

    def drop(self, cases: Sequence[Case], why: str) -> None:
        """These cannot be run here; what was measured of them before stays."""
        gone = {case.id for case in cases if self.has(case) and not self.case(case).samples}
        self._run_set = replace(
            self._run_set,
            cases=tuple(each for each in self._run_set.cases if each.id not in gone),
            missing=planning.with_more(self._run_set.missing, why, cases),
        )
        self.store()

    def finished(self, when: str) -> RunSet:
        """Nothing is missing now; returns all of it."""
        self._run_set = replace(self._run_set, finished=when)
        self.store()
        return self._run_set
