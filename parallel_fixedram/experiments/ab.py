"""A against B in one sitting: two revisions, or two commands, one after the other, and again, in shuffled order.

::

    for each scenario, for each round, the first one not counted:  for A and B, in shuffled order:
        ``bench run`` of that revision in a process of its own, one sample of each case        revisions
        the command, from start to end                                                          commands
    B by A: for each case the median of the ratios within rounds, and its interval

A drift of the machine affects both sides of a round. Each revision reads scenarios and writes results itself, so they
need not know of each other, and neither sees caches that the other has written. A against A shows the noise floor: how
large a difference this method finds where there is none.
"""

from __future__ import annotations

import os
import random
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from parallel_fixedram.core.errors import FixedRamError, HostError, RequestError
from parallel_fixedram.experiments import results, run_facts, tools
from parallel_fixedram.experiments.builds import Build
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.results import Bytes, CaseResult, RunSet, Sample, Seconds
from parallel_fixedram.experiments.scenario import Scenario, with_text
from parallel_fixedram.experiments.statistics import Ratio, median, paired_ratio

Turn = Callable[[int], RunSet]
"""``turn(number)``: one sample of each case, measured now by one of the two."""
Progress = Callable[[int, int, float, str], None]
"""As the runner's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCase:
    """A case that both have measured."""

    id: str
    median_a: float
    """Seconds."""
    median_b: float
    ratio: Ratio
    """B by A."""


class RevisionTurn:
    """One turn of a revision: its own ``bench run`` of a scenario.

    Args:
        build: of the revision.
        scenario: what is measured.
        scratch: a folder for it alone, for the scenario, results and caches.
        folder: where the files that are measured go.
    """

    def __init__(self, build: Build, scenario: Scenario, scratch: str, folder: str) -> None:
        self._build, self._scratch, self._folder = build, scratch, folder
        os.makedirs(scratch, exist_ok=True)
        self._scenario = os.path.join(scratch, "scenario.toml")
        once = with_text(replace(scenario, repeats=1, until=None, budget=None))
        try:
            with open(self._scenario, "w", encoding="utf-8") as file:
                file.write(once.text)
        except OSError as error:
            raise HostError.from_os(f"cannot write {self._scenario!r}", error) from error

    def __call__(self, number: int) -> RunSet:
        """Run it once.

        Raises:
            HostError: that failed; says for which revision.
        """
        output = os.path.join(self._scratch, "result.json")
        command = [self._build.python, "-m", "parallel_fixedram", "bench", "run", self._scenario]
        options = ["--folder", self._folder, "--output", output, "--overwrite", "--quiet"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["XDG_CACHE_HOME"] = os.path.join(self._scratch, "cache")
        if self._build.path:
            environment["PYTHONPATH"] = self._build.path
        name = self._build.revision.name
        try:
            tools.run([*command, *options], folder=self._scratch, environment=environment)
            found = results.load(output)
        except FixedRamError as error:
            raise HostError(f"revision {name!r}: {error.message}") from error
        return replace(found, commit=self._build.revision.commit)


class CommandTurn:
    """One turn of a command: it is run, and its time is taken.

    Args:
        command: as a shell would divide it; no shell runs it.
        folder: where files go, whose host facts are kept.

    Raises:
        RequestError: it has no words, or a quotation mark without its end.
    """

    def __init__(self, command: str, folder: str) -> None:
        self._command, self._folder = command, folder
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise RequestError(f"{command!r} is not a command: {error}") from error
        if not self._words:
            raise RequestError(f"{command!r} is not a command")
        self._facts: RunSet | None = None

    def __call__(self, number: int) -> RunSet:
        """Run it once.

        Raises:
            HostError: it failed.
        """
        started = time.perf_counter()
        tools.run(self._words)
        seconds = time.perf_counter() - started
        if self._facts is None:
            self._facts = run_facts.of_command(self._command, self._folder)
        sample = Sample(number=0, seconds=Seconds(total=seconds, wall=seconds), bytes=Bytes(ram=0), verified="no")
        case = CaseResult(id="command", parameters={"way": "command", "command": self._command}, samples=(sample,))
        return replace(self._facts, cases=(case,), order=(case.id,))


def run_in_turn(
    turns: Sequence[Turn],
    outputs: Sequence[str],
    *,
    rounds: int,
    warm_up: int = 1,
    seed: int = 1,
    names: Sequence[str] = ("A", "B"),
    progress: Progress | None = None,
) -> list[RunSet]:
    """Take turns, and store all samples of each side after every turn.

    Args:
        turns: of A and of B.
        outputs: where the results of each go.
        rounds: samples of each case.
        warm_up: rounds before those, which do not count.
        seed: of the order.
        names: of the sides, for progress.
        progress: told of every turn.

    Returns:
        The run set of each; a sample's number is that of its round.

    Raises:
        FixedRamError: a turn failed; what was measured until then is stored.
    """
    found: list[RunSet | None] = [None, None]
    done, total = 0, 2 * (rounds + warm_up)
    began = time.perf_counter()
    order = random.Random(seed)
    for number in range(-warm_up, rounds):
        for side in order.sample((0, 1), 2):
            if progress:
                left = (time.perf_counter() - began) / done * (total - done) if done else 0.0
                progress(
                    done, total, left, f"{names[side]}, round {number}" if number >= 0 else f"{names[side]}, warm-up"
                )
            made = turns[side](number)
            done += 1
            if number >= 0:
                found[side] = _with_round(found[side], made, number)
                results.store(_of_rounds(found[side], rounds), outputs[side])
    return [_of_rounds(each, rounds) for each in found]


def _with_round(before: RunSet | None, made: RunSet, number: int) -> RunSet:
    """The run set with the samples of one more round."""
    numbered = tuple(
        replace(case, samples=tuple(replace(sample, number=number) for sample in case.samples[:1]))
        for case in made.cases
    )
    if before is None:
        return replace(made, cases=numbered)
    known = {case.id: case for case in before.cases}
    cases = [
        replace(known[case.id], samples=(*known[case.id].samples, *case.samples)) if case.id in known else case
        for case in numbered
    ]
    gone = [case for case in before.cases if case.id not in {each.id for each in numbered}]
    return replace(before, cases=(*cases, *gone), order=(*before.order, *made.order), finished=made.finished)


def _of_rounds(run_set: RunSet | None, rounds: int) -> RunSet:
    assert run_set is not None, "there was a round"
    return replace(run_set, scenario=replace(run_set.scenario, repeats=rounds))


def verdicts(first: RunSet, second: RunSet, metric: Metric) -> list[PairedCase]:
    """For each case that both have measured, and that tells this time, B by A."""
    other = {case.id: case for case in second.cases}
    found = []
    for case in first.cases:
        if case.id not in other:
            continue
        a, b = (
            {sample.number: value for sample in each.samples if (value := metric.of(sample))}
            for each in (case, other[case.id])
        )
        both = [number for number in a if number in b]
        if both and min(min(a[number], b[number]) for number in both) > 0:
            times_a, times_b = [a[number] for number in both], [b[number] for number in both]
            ratio = paired_ratio(times_a, times_b)
            found.append(PairedCase(id=case.id, median_a=median(times_a), median_b=median(times_b), ratio=ratio))
    return found


def noise_floor(found: Sequence[PairedCase]) -> float | None:
    """Of A against A: the largest factor, 1 or more, that lies in an interval; None where there is no interval."""
    ends = [end for each in found for end in (each.ratio.low, each.ratio.high) if end is not None]
    return max((max(end, 1 / end) for end in ends), default=None)
