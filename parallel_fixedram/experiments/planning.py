"""What a scenario comes to on this host: groups of cases, what is missing, how long it may take.

Cases of one source and one file system form a group: its guest is booted once and its file system made once, and
inside every round each of its cases is run once, in shuffled order. So neighbours in time are what is compared.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallel_fixedram.core.units import MIB
from parallel_fixedram.experiments import conditions, file_systems, measured_guest, tools
from parallel_fixedram.experiments.cases import FROM_A_FILE, Case
from parallel_fixedram.experiments.libvirt_guest import why_no_libvirt
from parallel_fixedram.experiments.results import MissingWay
from parallel_fixedram.experiments.scenario import Scenario
from parallel_fixedram.experiments.ways.table import TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Cases that share a guest and a file system."""

    source: str
    file_system: str
    cases: tuple[Case, ...]

    @property
    def room(self) -> int:
        """Bytes that its largest file may take: after a save of QEMU's, all of a guest's RAM has been touched."""
        largest = max(
            (each.ram_bytes if each.qemu else each.data_bytes) * (each.rounds or 1) * 11 // 10 + each.ram_bytes // 256
            for each in self.cases
        )
        if any(each.way in FROM_A_FILE for each in self.cases):
            largest *= 2  # the file that guests are started from stays
        return largest + 512 * MIB  # what writes cost is measured there, too

    @property
    def own_guests(self) -> bool:
        """Whether every run has a guest of its own."""
        return all(each.own_guest for each in self.cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done."""

    groups: tuple[Group, ...]
    missing: tuple[MissingWay, ...]

    @property
    def cases(self) -> list[Case]:
        """All cases that can be run, as far as is known by now."""
        return [case for group in self.groups for case in group.cases]


def make_plan(cases: Sequence[Case]) -> Plan:
    """Find out what can be run here, without starting anything.

    Args:
        cases: of a scenario.
    """
    missing: dict[tuple[str, str], list[str]] = {}
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if why := _why_missing(case):
            missing.setdefault((case.way, why), []).append(case.id)
        else:
            own = " of its own" if case.own_guest else ""
            groups.setdefault((case.source + own, case.file_system or "folder"), []).append(case)
    return Plan(
        groups=tuple(
            Group(source=source, file_system=kind, cases=tuple(found)) for (source, kind), found in groups.items()
        ),
        missing=tuple(MissingWay(way=way, why=why, cases=tuple(ids)) for (way, why), ids in missing.items()),
    )


def shuffled(group: Group, seed: int, number: int) -> list[Case]:
    """The order of a round, the same each time it is asked for."""
    found = list(group.cases)
    random.Random(f"{seed} {group.source} {group.file_system} {number}").shuffle(found)
    return found


def rounds(scenario: Scenario) -> Iterator[int]:
    """Numbers of the rounds; those below 0 do not count."""
    return iter(range(-scenario.warm_up, scenario.repeats))


def runs(plan: Plan, scenario: Scenario) -> int:
    """How many runs there will be, with those that do not count and those that are watched."""
    watched = sum(map(is_watched, plan.cases))
    return len(plan.cases) * (scenario.warm_up + scenario.repeats) + watched


def is_watched(case: Case) -> bool:
    """Whether there is one more run of it, whose memory and shards are noted."""
    return case.way == "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a scenario needs besides Python."""

    name: str
    why_missing: str
    """Empty where it is there."""


def room(plan: Plan) -> conditions.Needs:
    """What a plan takes at a time: guest and file of its largest group."""
    return conditions.Needs(
        memory=max((case.ram_bytes for case in plan.cases), default=0),
        file=max((group.room for group in plan.groups if group.file_system != "tmpfs"), default=0),
    )


def needs(cases: Sequence[Case]) -> list[Need]:
    """Root, programs, file systems that cases need, each once, and whether that is there."""
    found: dict[str, str | None] = {}
    for case in cases:
        if case.qemu is not None:
            found["QEMU"] = tools.why_no_qemu()
            if case.qemu.domain:
                found["libvirt"] = why_no_libvirt()
        if case.way.startswith("fio"):
            found["fio"] = TABLE[case.way].why_missing()
        if case.file_system in file_systems.MOUNTED:
            found[case.file_system] = file_systems.why_missing(case.file_system)
            found["root"] = _why_not_root()
        if case.cache == "drop":
            found["root"] = found.get("root") or _why_not_dropped()
    return [Need(name=name, why_missing=why or "") for name, why in sorted(found.items())]


def _why_not_root() -> str | None:
    return None if os.geteuid() == 0 else "this is not root"


def _why_not_dropped() -> str | None:
    if os.access(tools.DROP_CACHES, os.W_OK):
        return None
    return f"dropping the page cache needs root: {tools.DROP_CACHES} cannot be written"


def _why_missing(case: Case) -> str | None:
    why = measured_guest.why_missing(case) or TABLE[case.way].why_missing()
    if why is None and case.file_system is not None:
        why = file_systems.why_missing(case.file_system)
    if why is None and case.cache == "drop":
        why = _why_not_dropped()
    return why


def with_more(missing: Sequence[MissingWay], why: str, cases: Sequence[Case]) -> tuple[MissingWay, ...]:
    """What is missing, with cases that turned out to be missing later."""
    found = {(each.way, each.why): list(each.cases) for each in missing}
    for case in cases:
        ids = found.setdefault((case.way, why), [])
        if case.id not in ids:
            ids.append(case.id)
    return tuple(MissingWay(way=way, why=reason, cases=tuple(ids)) for (way, reason), ids in found.items())
