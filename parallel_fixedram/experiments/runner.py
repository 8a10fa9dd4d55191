"""Runner: carries out a scenario, and stores every sample as soon as it is there.

::

    for each group (a source on a file system):
        guest booted, file system made
        for each round, the first ones not counted:  for each case, in shuffled order:
            old file gone, everything synced (and the page cache dropped)     not timed
            run                                                              timed
            verify                                                           not timed
            store
        for each case of ours: one more run that is watched

A case with a guest of its own has it booted before each run instead, which is not timed. Stored samples are never
measured again: an interrupted run set continues where it stopped, after another warm-up.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.reports.doctor import Finding
from parallel_fixedram.experiments import file_systems, measured_guest, pace, planning, results, run_facts, tools
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.counters import between, read_counters
from parallel_fixedram.experiments.group_rounds import Rounds
from parallel_fixedram.experiments.kept import Kept
from parallel_fixedram.experiments.measured_guest import MeasuredGuest
from parallel_fixedram.experiments.planning import Group, Plan
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sitting
from parallel_fixedram.experiments.scenario import Scenario
from parallel_fixedram.experiments.watched import watched
from parallel_fixedram.experiments.ways.table import OURS, TABLE
from parallel_fixedram.experiments.ways.way import Run, clear

Progress = Callable[[int, int, float, str], None]
"""``progress(done, total, left, what)``: runs done and in all, about how many seconds are left, what is done now."""

_FILE = "ram"


def run_scenario(
    scenario: Scenario,
    *,
    folder: str,
    output: str,
    resume: bool = False,
    overwrite: bool = False,
    conditions: Sequence[Finding] = (),
    progress: Progress | None = None,
) -> RunSet:
    """Carry out a scenario.

    Args:
        scenario: what to measure.
        folder: where the files that are measured go; nothing is left there.
        output: where the results go.
        resume: go on with the results that ``output`` holds already.
        overwrite: discard them instead.
        conditions: findings about the host; stored with the results.
        progress: told of every run.

    Returns:
        What ``output`` holds at the end.

    Raises:
        RequestError: ``output`` exists, or belongs to another scenario.
        FixedRamError: a run failed, or a file was wrong; what was measured before is stored.
    """
    check_output(scenario, output, resume=resume, overwrite=overwrite)
    if not os.path.isdir(folder):
        raise RequestError(f"{folder!r} is not a folder")
    plan = planning.make_plan(scenario.cases)
    run_set = results.load(output) if resume and os.path.exists(output) else run_facts.empty(scenario, folder)
    run_set = _fitted(run_set, scenario, plan)
    sitting = Sitting(started=run_facts.now(), conditions=tuple(conditions))
    run_set = replace(run_set, sittings=(*run_set.sittings, sitting))
    return _Runner(scenario, plan, run_set, folder, output, progress).run()


def check_output(scenario: Scenario, output: str, *, resume: bool, overwrite: bool) -> None:
    """Refuse to lose results, or to mix those of two scenarios.

    Raises:
        RequestError: ``output`` exists, or is of another scenario.
        FormatError: it is to be continued, and holds no results.
    """
    if resume and overwrite:
        raise RequestError("either resume or overwrite, not both")
    if not os.path.exists(output) or overwrite:
        return
    if not resume:
        raise RequestError(f"{output!r} exists", hint="--resume goes on with it, --overwrite starts again")
    if results.load(output).scenario.text != scenario.text:
        raise RequestError(f"{output!r} holds results of another scenario than {scenario.path!r} is now")


def _fitted(run_set: RunSet, scenario: Scenario, plan: Plan) -> RunSet:
    """With a place for each case that can be run; what was measured is kept."""
    known = {each.id: each for each in run_set.cases}
    return replace(
        run_set,
        scenario=run_facts.scenario_facts(scenario),
        finished=None,
        missing=plan.missing,
        cases=tuple(known.get(case.id, CaseResult(id=case.id, parameters=case.parameters())) for case in plan.cases),
    )


class _Runner:
    """Carries out one scenario."""

    def __init__(
        self, scenario: Scenario, plan: Plan, run_set: RunSet, folder: str, output: str, progress: Progress | None
    ) -> None:
        self._scenario = scenario
        self._plan = plan
        self._kept = Kept(run_set, output)
        self._folder = folder
        self._progress = progress
        self._pace = pace.Pace.kept()
        self._rounds = Rounds(scenario, plan, self._kept, self._pace)
        self._done = 0

    def run(self) -> RunSet:
        """Measure everything that is not there yet."""
        self._kept.store()
        began = read_counters()
        try:
            for number, group in enumerate(self._plan.groups):
                if self._rounds.wanted(group):
                    try:
                        self._run_group(group, self._plan.groups[number + 1 :])
                    except tools.Missing as missing:
                        self._drop(group.cases, missing.message)
        finally:
            self._pace.keep()
            self._kept.sat(between(began, read_counters()))
        return self._kept.finished(run_facts.now())

    def _run_group(self, group: Group, later: Sequence[Group]) -> None:
        started, runs_took = time.perf_counter(), 0.0
        afterwards = self._rounds.seconds(later)
        self._tell(afterwards + self._rounds.seconds([group]), f"{group.source}, {group.file_system}: starts")
        with (
            file_systems.file_system(group.file_system, self._folder, group.room) as folder,
            self._source(group.cases[0], own=False) as shared,
        ):
            self._drop_direct(group, folder)
            for number, case in self._rounds.due(group):
                if not self._kept.has(case):
                    continue
                self._tell(afterwards + self._rounds.seconds_left(group), case.id)
                begun = time.perf_counter()
                with self._source(case, own=True) as own:
                    self._run_case(case, number, own or shared, os.path.join(folder, _FILE))
                took = time.perf_counter() - begun
                self._pace.learn(pace.of_run(case), took)
                runs_took += took
                self._done += 1
            for entry in os.scandir(folder):
                if not entry.is_dir(follow_symlinks=False):  # ext4 comes with a folder of its own, lost+found
                    os.unlink(entry.path)
        self._pace.learn(pace.of_group(group), time.perf_counter() - started - runs_took)

    def _source(self, case: Case, *, own: bool) -> contextlib.AbstractContextManager[MeasuredGuest | None]:
        """The guest that runs share, or the one that a run has to itself; None where it has the other kind."""
        if own and not (case.own_guest and case.qemu):
            return contextlib.nullcontext()
        if not own and case.own_guest:
            return contextlib.nullcontext(
                None if case.qemu else measured_guest.in_the_process(case, self._scenario.seed)
            )
        return measured_guest.open_source(case, self._scenario.seed)

    def _run_case(self, case: Case, number: int | None, source: MeasuredGuest | None, path: str) -> None:
        assert source is not None, "a group has guests of one kind"
        run = Run(
            case=case, source=source, path=path, seed=self._scenario.seed, number=-1 if number is None else number
        )
        clear(run)
        if number is None:
            self._watch(run)
        else:
            self._measure(run)

    def _measure(self, run: Run) -> None:
        way = TABLE[run.case.way]
        measured = watched(run) if run.case.qemu and run.case.qemu.watched else way.run(run)
        verified = way.verify(run)
        self._kept.ran(run.case, measured.sample(run.number, verified) if run.number >= 0 else None)

    def _watch(self, run: Run) -> None:
        instrumented = OURS.instrumented(run)
        OURS.verify(run)
        self._kept.watched(run.case, instrumented)

    def _drop_direct(self, group: Group, folder: str) -> None:
        """Drop cases that need direct I/O if the file system, which is there only now, refuses it."""
        wanting = tuple(case for case in group.cases if case.direct_io == "on" or case.way == "qemu-multifd-direct")
        if wanting and not file_systems.takes_direct_io(folder):
            self._drop(wanting, f"the file system ({group.file_system}) refuses direct I/O")

    def _drop(self, cases: tuple[Case, ...], why: str) -> None:
        """These cannot be run here; what was measured of them before stays."""
        before = self._rounds.left()
        self._kept.drop(cases, why)
        self._rounds.total -= before - self._rounds.left()

    def _tell(self, left: float, what: str) -> None:
        if self._progress:
            self._progress(self._done, self._rounds.total, left, what)
