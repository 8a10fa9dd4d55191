"""Run sets that nobody measured, for tests of what is made of run sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.results import (
    Bytes,
    CaseResult,
    Instrumented,
    MissingWay,
    RunSet,
    Sample,
    ScenarioFacts,
    Seconds,
)
from parallel_fixedram.experiments.scenario import parse_scenario

HOST = {
    "cpu_model": "Synthetic CPU (no such machine)",
    "cpus": 2,
    "memory": 8 << 30,
    "kernel": "6.0-synthetic",
    "file_system": "ext4",
    "mount_options": "rw",
    "disk": {"device": "synthetic0", "model": "made up", "rotational": False, "free": 1 << 40},
}
VERSIONS = {"parallel_fixedram": "0.0", "python": "3.x", "numpy": "2.x", "qemu": None, "fio": None, "kernel": "6.0"}

Made = Callable[[Case, int], Mapping[str, Any]]
"""Case and number of the sample -> fields of Sample."""


def sample(number: int, total: float, **fields: Any) -> Sample:
    """A sample of 1 GiB of RAM, all of it data unless told otherwise."""
    seconds = {"last_write": total * 0.8, "pause": None, "phases": None, **fields.pop("seconds", {})}
    size = {"ram": 1 << 30, "data": 1 << 30, "file": 1 << 30, "allocated": 1 << 30, **fields.pop("bytes", {})}
    return Sample(
        number=number, seconds=Seconds(total=total, **seconds), bytes=Bytes(**size), verified="size", **fields
    )


def case(case_id: str, totals: Sequence[float], parameters: Mapping[str, Any] | None = None) -> CaseResult:
    """A case whose samples took so long."""
    samples = tuple(sample(number, total) for number, total in enumerate(totals))
    return CaseResult(id=case_id, parameters=parameters or {"way": case_id.split()[0]}, samples=samples)


def run_set(*cases: CaseResult, **fields: Any) -> RunSet:
    """A finished run set of these cases."""
    facts = {
        "name": "synthetic",
        "question": "Does anything follow from numbers that nobody measured?",
        "repeats": 7,
        "warm_up": 1,
        "seed": 1,
        "text": 'name = "synthetic"\n',
        **fields.pop("scenario", {}),
    }
    missing = fields.pop("missing", (MissingWay(way="fio", why="not installed <here>", cases=("fio channels=1",)),))
    values = {
        "started": "2000-01-01T00:00:00+00:00",
        "finished": "2000-01-01T01:00:00+00:00",
        "commit": "0000000",
        "versions": VERSIONS,
        "host": HOST,
        "order": (),
        **fields,
    }
    return RunSet(scenario=ScenarioFacts(**facts), cases=cases, missing=missing, **values)


def of_scenario(text: str, made: Made, *, timeline: Callable[[Case], Any] | None = None, repeats: int = 7) -> RunSet:
    """A run set with the cases of a scenario in TOML; ``made`` says what each sample found."""
    scenario = parse_scenario(text, "synthetic.toml")
    cases = []
    for each in scenario.cases:
        samples = tuple(sample(number, **made(each, number)) for number in range(repeats))
        shards = timeline(each) if timeline else None
        watched = None if shards is None else Instrumented(private_bytes_peak=1 << 24, timeline=tuple(shards))
        cases.append(CaseResult(id=each.id, parameters=each.parameters(), samples=samples, instrumented=watched))
    facts = {"name": scenario.name, "question": scenario.question, "text": text}
    return run_set(*cases, scenario=facts, missing=())


def noise(case_id: str, number: int, spread: float = 0.05) -> float:
    """A factor about 1, the same for the same case and number."""
    return float(np.exp(np.random.default_rng([number, *case_id.encode()]).normal(0, spread)))
