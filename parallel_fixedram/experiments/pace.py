"""Pace: how long the steps of a scenario take: guessed at first, and better with each one that is done.

A guess is made from what there is to do: processes, bytes, file systems. How fast this host is shows in the factor
between guess and time taken. It is kept for each kind of step, also for later commands (``host/user_cache.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from parallel_fixedram.core.units import MIB
from parallel_fixedram.experiments.cases import FROM_A_FILE, Case
from parallel_fixedram.experiments.planning import Group, Plan, is_watched, rounds
from parallel_fixedram.experiments.scenario import Scenario
from parallel_fixedram.experiments.stopping import parse_budget
from parallel_fixedram.host import user_cache

_KEPT_AS = "bench.json"
_FADES = 0.9
"""How much a step weighs compared with the next one of its kind."""

_WRITTEN_PER_SECOND = 500 * MIB
_READ_PER_SECOND = 1500 * MIB
_FILLED_PER_SECOND = {"guest": 400 * MIB, "qemu": 200 * MIB}
_CALIBRATION_SECONDS = 1.2
_COLD_SECONDS = 0.3
_ROUND_SECONDS = 0.4
_FILE_SYSTEM_SECONDS = {"folder": 0.1, "tmpfs": 0.2, "xfs": 1.5, "ext4": 1.5}
_SOURCE_SECONDS = {"guest": 0.3, "qemu": 1.0}
_WAY_SECONDS = {"ours": 1.0, "scan": 0.7, "copy": 0.7, "clone": 1.5, "restore": 1.5, "verify": 0.7}
"""Of a small guest: processes started, everything synced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A step that is to be done."""

    kind: str
    """The guesses of one kind are wrong by the same factor."""
    seconds: float


def of_group(group: Group) -> Guess:
    """What comes before and after the runs of a group: guest and file system."""
    case = group.cases[0]
    source = "qemu" if case.qemu else "guest"
    kind = group.file_system
    seconds = _FILE_SYSTEM_SECONDS[kind]
    if not group.own_guests:
        seconds += _boot_seconds(case)
    if any(each.way == "ours" for each in group.cases):
        seconds += _CALIBRATION_SECONDS  # what writes cost in a folder is measured before the first save into it
    if any(each.way in FROM_A_FILE for each in group.cases):
        seconds += 1.0 + case.data_bytes / _WRITTEN_PER_SECOND
    return Guess(kind=f"{source} on {kind}", seconds=seconds)


def of_run(case: Case) -> Guess:
    """One run, with what comes before and after its time: old file gone, all synced, new file verified."""
    seconds = _WAY_SECONDS.get(case.way, 0.5)
    moved = case.data_bytes * (case.rounds or 1) * (case.count or 1)
    seconds += moved / _WRITTEN_PER_SECOND + case.data_bytes / _READ_PER_SECOND
    seconds += _ROUND_SECONDS * (case.rounds or 0)
    if case.own_guest:
        seconds += _boot_seconds(case)
    if case.calibrate:
        seconds += _CALIBRATION_SECONDS
    if case.cache == "drop":
        seconds += _COLD_SECONDS
    return Guess(kind=f"{case.way}, {'qemu' if case.qemu else 'guest'}", seconds=seconds)


def of_all(plan: Plan, scenario: Scenario) -> Iterator[Guess]:
    """All steps of a scenario on this host."""
    each = len(list(rounds(scenario)))
    for group in plan.groups:
        yield of_group(group)
        for case in group.cases:
            yield from [of_run(case)] * (each + is_watched(case))


def rough_seconds(plan: Plan, scenario: Scenario) -> float:
    """About how long a scenario takes on this host, as far as runs done so far tell; more where it has an ``until``."""
    seconds = Pace.kept().seconds(of_all(plan, scenario))
    return min(seconds, parse_budget(scenario.budget)) if scenario.budget else seconds


def _boot_seconds(case: Case) -> float:
    source = "qemu" if case.qemu else "guest"
    return _SOURCE_SECONDS[source] + case.data_bytes / _FILLED_PER_SECOND[source]


class Pace:
    """Seconds guessed and seconds taken, by kind.

    Args:
        sums: seconds guessed and taken of each kind.
    """

    def __init__(self, sums: dict[str, tuple[float, float]] | None = None) -> None:
        self._sums = dict(sums or {})

    @classmethod
    def kept(cls) -> Self:
        """As it was last kept; empty if nothing usable was."""
        return cls({kind: (pair[0], pair[1]) for kind, pair in user_cache.read(_KEPT_AS).items() if _is_pair(pair)})

    def keep(self) -> None:
        """Keep it for the next command."""
        user_cache.write(_KEPT_AS, {kind: list(pair) for kind, pair in self._sums.items()})

    def learn(self, guess: Guess, taken: float) -> None:
        """Take into account that something took so many seconds."""
        guessed, before = self._sums.get(guess.kind, (0.0, 0.0))
        self._sums[guess.kind] = (guessed * _FADES + guess.seconds, before * _FADES + taken)

    def seconds(self, guesses: Iterable[Guess]) -> float:
        """How long these will take together."""
        found = list(self._sums.values())
        others = _factor(sum(guessed for guessed, _ in found), sum(taken for _, taken in found))
        return sum(
            guess.seconds * (_factor(*self._sums[guess.kind]) if guess.kind in self._sums else others)
            for guess in guesses
        )


def _factor(guessed: float, taken: float) -> float:
    return taken / guessed if guessed else 1.0


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(each, int | float) and 0 < each < 1e9 for each in value)
    )
