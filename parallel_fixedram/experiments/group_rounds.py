"""Rounds of a group: which are left, how long they will take, and when there are enough."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from parallel_fixedram.experiments import pace, planning
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.kept import Kept
from parallel_fixedram.experiments.planning import Group, Plan
from parallel_fixedram.experiments.results import CaseResult
from parallel_fixedram.experiments.scenario import Scenario
from parallel_fixedram.experiments.stopping import Budget, parse_budget, parse_until, wants_more


class Rounds:
    """Decides, while runs are made, what is to be run next.

    Args:
        scenario: what is measured.
        plan: what of it can be.
        kept: what was measured.
        known: how long things take.

    Attributes:
        total: runs that there will be, as far as is known.
    """

    def __init__(self, scenario: Scenario, plan: Plan, kept: Kept, known: pace.Pace) -> None:
        self._scenario, self._plan, self._kept, self._pace = scenario, plan, kept, known
        self._until = parse_until(scenario.until) if scenario.until else None
        self._ends = time.perf_counter() + parse_budget(scenario.budget) if scenario.budget else None
        self._budget = Budget(None)
        self.total = self.left()

    def left(self) -> int:
        """Runs that were planned, and are not done."""
        return sum(len(self._runs_of(group)) for group in self._plan.groups)

    def wanted(self, group: Group) -> bool:
        """Whether anything is to be run."""
        return bool(self._runs_of(group)) or self._wants_more(group)

    def due(self, group: Group) -> Iterator[tuple[int | None, Case]]:
        """One run after the other: the planned rounds, further ones if wanted, and the watched runs."""
        self._budget = Budget(self._share_of(group))
        runs = self._runs_of(group)
        planned = [(number, case) for number, case in runs if number is not None]
        made = False
        for number, together in itertools.groupby(planned, key=lambda run: run[0]):
            round_ = [case for _, case in together]
            if made and not self._budget.lasts:
                self.total -= len(round_)
                continue
            yield from self._round(number, round_)
            made = made or number >= 0
        while self._budget.lasts and self._wants_more(group):
            number = self._next_number(group)
            round_ = [each for each in planning.shuffled(group, self._scenario.seed, number) if self._kept.has(each)]
            self.total += len(round_)
            yield from self._round(number, round_)
        yield from ((None, case) for number, case in runs if number is None)

    def _round(self, number: int, cases: Sequence[Case]) -> Iterator[tuple[int, Case]]:
        started = time.perf_counter()
        yield from ((number, case) for case in cases)
        self._budget.spend(time.perf_counter() - started)

    def _results_of(self, group: Group) -> list[CaseResult]:
        return [self._kept.case(case) for case in group.cases if self._kept.has(case)]

    def _next_number(self, group: Group) -> int:
        """That of a round after all that were planned or made."""
        taken = (sample.number for result in self._results_of(group) for sample in result.samples)
        return max(self._scenario.repeats, *(number + 1 for number in taken), 0)

    def _wants_more(self, group: Group) -> bool:
        found = self._results_of(group)
        return bool(found) and wants_more(self._until, self._scenario.repeats, found, self._next_number(group))

    def _share_of(self, group: Group) -> float | None:
        """Seconds that the rounds of a group may take: its estimated share of the time that is left."""
        if self._ends is None:
            return None
        left = [each for each in self._plan.groups if self._runs_of(each) or each is group]
        share = max(self.seconds([group]), 1e-9) / max(self.seconds(left), 1e-9)
        return max(self._ends - time.perf_counter(), 0.0) * share

    def seconds_left(self, group: Group) -> float:
        """About how long the rest of a group that is being run will take."""
        left = self._pace.seconds(pace.of_run(case) for _, case in self._runs_of(group))
        return left if self._budget.left is None else min(left, max(self._budget.left, 0.0))

    def seconds(self, groups: Sequence[Group]) -> float:
        """About how long these groups will take."""
        guesses = [
            guess
            for group in groups
            if (runs := self._runs_of(group))
            for guess in (pace.of_group(group), *(pace.of_run(case) for _, case in runs))
        ]
        return self._pace.seconds(guesses)

    def _runs_of(self, group: Group) -> list[tuple[int | None, Case]]:
        """What is left to do for a group, in order: number of the round and case; None for a watched run."""
        cases = {case.id: self._kept.case(case) for case in group.cases if self._kept.has(case)}
        left = {
            case_id: set(range(self._scenario.repeats)) - {sample.number for sample in result.samples}
            for case_id, result in cases.items()
        }
        found: list[tuple[int | None, Case]] = []
        for number in planning.rounds(self._scenario):
            for case in planning.shuffled(group, self._scenario.seed, number):
                if case.id in cases and (number in left[case.id] or (number < 0 and left[case.id])):
                    found.append((number, case))
        found += [
            (None, case)
            for case in group.cases
            if case.id in cases and case.way == "ours" and cases[case.id].instrumented is None
        ]
        return found
