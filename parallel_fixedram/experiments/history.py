"""What was measured, commit after commit: a line of JSON for each case of a result, and where its level changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parallel_fixedram.core.errors import FormatError, HostError
from parallel_fixedram.core.plain import from_plain
from parallel_fixedram.core.schemas import check, stamped
from parallel_fixedram.experiments.compare import host_facts_of, same_host
from parallel_fixedram.experiments.metrics import Metric, seconds
from parallel_fixedram.experiments.results import RunSet
from parallel_fixedram.experiments.statistics import median
from parallel_fixedram.experiments.steps import LevelChange, find_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A case of a result."""

    scenario: str
    case: str
    commit: str | None
    started: str
    """ISO 8601, with offset."""
    host: Mapping[str, Any]
    """The facts that identify it; see compare.py."""
    seconds: Mapping[str, tuple[float, ...]]
    """All samples, by the name of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A time of a case on one host, commit after commit."""

    scenario: str
    case: str
    metric: Metric
    entries: tuple[Entry, ...]
    """In the order of the file; each tells this time."""
    steps: tuple[LevelChange, ...]
    left_out: int
    """Entries of other hosts than that of the last one."""

    @property
    def medians(self) -> list[float]:
        """Of each entry, seconds."""
        return [median(entry.seconds[self.metric]) for entry in self.entries]


def entries_of(run_set: RunSet) -> Iterator[Entry]:
    """An entry for each case that was measured."""
    for case in run_set.cases:
        times = {str(metric): tuple(found) for metric in Metric if (found := seconds(case, metric))}
        if times:
            yield Entry(
                scenario=run_set.scenario.name,
                case=case.id,
                commit=run_set.commit,
                started=run_set.started,
                host=host_facts_of(run_set.host),
                seconds=times,
            )


def load(path: str) -> list[Entry]:
    """The entries of a file; none where there is no file.

    Raises:
        HostError: it cannot be read.
        FormatError: a line is not an entry; says which.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return [_entry(line, f"{path!r}, line {number}") for number, line in enumerate(file, 1)]
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise FormatError(f"{path!r} is not a history: it is not even text") from error
    except OSError as error:
        raise HostError.from_os(f"cannot read {path!r}", error) from error


def _entry(line: str, where: str) -> Entry:
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise FormatError("it is not an object")
        check(data, "history")
        return from_plain(Entry, data)
    except (ValueError, RecursionError, FormatError) as error:
        raise FormatError(f"{where}: not an entry of a history: {error}") from error


def append(path: str, run_sets: Sequence[RunSet]) -> tuple[list[Entry], int]:
    """Add what is not there yet.

    Returns:
        All entries, and how many of them are new.

    Raises:
        HostError: the file cannot be read or written.
        FormatError: it is not a history; nothing is added.
    """
    known = load(path)
    there = {_key(entry) for entry in known}
    fresh = [entry for run_set in run_sets for entry in entries_of(run_set) if _key(entry) not in there]
    text = "".join(json.dumps(stamped("history", asdict(entry))) + "\n" for entry in fresh)
    try:
        if fresh:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise HostError.from_os(f"cannot write {path!r}", error) from error
    return [*known, *fresh], len(fresh)


def _key(entry: Entry) -> tuple[str, str, str | None, str]:
    return entry.scenario, entry.case, entry.commit, entry.started


def trends(entries: Sequence[Entry], metric: Metric) -> list[Trend]:
    """A trend for each case that tells this time."""
    by_case: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.seconds.get(metric):
            by_case.setdefault((entry.scenario, entry.case), []).append(entry)
    found = []
    for (scenario, case), of_case in by_case.items():
        own = [entry for entry in of_case if same_host(entry.host, of_case[-1].host)]
        steps = find_steps([median(entry.seconds[metric]) for entry in own])
        found.append(
            Trend(
                scenario=scenario,
                case=case,
                metric=metric,
                entries=tuple(own),
                steps=tuple(steps),
                left_out=len(of_case) - len(own),
            )
        )
    return found
