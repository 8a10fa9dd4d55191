"""A part of a scenario, or one with other values: what ``--case`` and ``-L`` make of it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments.cases import WAYS, Case
from parallel_fixedram.experiments.expand import expand
from parallel_fixedram.experiments.parameters import PARAMETERS, QEMU_PARAMETERS
from parallel_fixedram.experiments.scenario import MAX_CASES, Scenario, with_text
from parallel_fixedram.experiments.toml_text import table_of

Overrides = Mapping[str, Sequence[Any]]
"""Values by the name of a parameter; one of a QEMU guest is ``qemu.NAME``."""


def parse_overrides(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse texts such as ``channels=1,2,8``. A guest contains commas, so its values are given one by one.

    Raises:
        RequestError: there is no such parameter, or no value.
    """
    found: dict[str, list[Any]] = {}
    known = [*(name for name in PARAMETERS if name != "qemu"), *(f"qemu.{name}" for name in QEMU_PARAMETERS)]
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in known:
            raise RequestError(f"-L {text}: {name!r} is not a parameter, expected NAME=VALUE,... of {', '.join(known)}")
        parts = [values] if name == "guest" else values.split(",")
        if not equals or not all(parts):
            raise RequestError(f"-L {text}: a value is missing, expected {name}=VALUE,...")
        found.setdefault(name, []).extend(map(_value, parts))
    return found


def _value(text: str) -> Any:
    """A number or a boolean if TOML reads it as one, else the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def with_overrides(scenario: Scenario, overrides: Overrides) -> Scenario:
    """The scenario with these values of a parameter in every case that has it.

    Raises:
        RequestError: no case has it, or a value is wrong.
    """
    if not overrides:
        return scenario
    for name in overrides:
        if not any(_knows(case, name) for case in scenario.cases):
            raise RequestError(f"-L {name}: no case of {scenario.name!r} has it")
    cases = tuple(dict.fromkeys(each for case in scenario.cases for each in _changed(case, overrides)))
    if len(cases) > MAX_CASES:
        raise RequestError(f"-L: {len(cases)} cases, expected at most {MAX_CASES}")
    return with_text(replace(scenario, cases=cases))


def _knows(case: Case, name: str) -> bool:
    if name == "guest":
        return case.guest is not None
    return case.qemu is not None if name.startswith("qemu.") else name in WAYS[case.way].defaults


def _changed(case: Case, overrides: Overrides) -> Iterator[Case]:
    own = {name: list(values) for name, values in overrides.items() if _knows(case, name)}
    if not own:
        yield case
        return
    table = table_of(case)
    for name, values in own.items():
        if name.startswith("qemu."):
            table["qemu"] = {**table["qemu"], name.removeprefix("qemu."): values}
        else:
            table[name] = values
    yield from expand(f"-L, {case.way}", table)


def selected(scenario: Scenario, patterns: Sequence[str]) -> Scenario:
    """The scenario with only those cases whose id matches one of the patterns, as a part or by wildcards.

    Raises:
        RequestError: a pattern matches none.
    """
    if not patterns:
        return scenario
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in scenario.cases):
            raise RequestError(
                f"--case {pattern}: no case of {scenario.name!r} matches",
                hint="bench run --dry-run lists the cases; * stands for any letters",
            )
    cases = tuple(case for case in scenario.cases if any(_matches(case, pattern) for pattern in patterns))
    return with_text(replace(scenario, cases=cases))


def _matches(case: Case, pattern: str) -> bool:
    return pattern in case.id or fnmatchcase(case.id, pattern)
