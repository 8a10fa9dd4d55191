"""Scenarios: a question, and the cases whose samples answer it, as TOML.

::

    name = "channels"
    question = "Do parallel channels pay, and where?"
    repeats = 7                       # samples per case
    warm_up = 1                       # rounds that do not count
    seed = 1                          # of the order and of the guests
    until = "interval < 5 %"          # not necessary, like budget: when there are samples enough (stopping.py)
    budget = "10 min"

    [[case]]                          # one case for every combination of the listed values
    way = ["ours", "fio"]
    guest = "dense,size=1GiB"         # or: qemu = {size = "2GiB", data = 0.5, ram = "memfd"}
    channels = [1, 2, 4]
    direct_io = ["on", "off"]

``[[published]]`` names figures of others, which reports put beside those of a case (published.py).

A parameter that a way does not know is an error, and so is a name that nobody knows. Every error is one line: file,
number of the case, parameter, what was found and what is expected.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.expand import checked, expand, refuse_unknown
from parallel_fixedram.experiments.parameters import Check, any_text, whole
from parallel_fixedram.experiments.published import PublishedFigure, parse_published
from parallel_fixedram.experiments.stopping import parse_budget, parse_until
from parallel_fixedram.experiments.toml_text import scenario_text

MAX_CASES = 10_000

_SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scenarios")
_ENDING = ".toml"
_HEAD = ("name", "question", "repeats", "warm_up", "seed", "until", "budget")
_TOP = (*_HEAD, "published", "case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A question and its cases."""

    name: str
    question: str
    repeats: int
    warm_up: int
    seed: int
    cases: tuple[Case, ...]
    """In the order of the file, none twice."""
    text: str
    """The TOML as it was read."""
    path: str
    until: str | None = None
    """How precise cases are to be; see stopping.py."""
    budget: str | None = None
    """How long rounds may take."""
    published: tuple[PublishedFigure, ...] = ()
    """Figures of others."""


def shipped() -> dict[str, str]:
    """Paths of the scenarios that come with the package, by name, in the order of their names."""
    return {
        name.removesuffix(_ENDING): os.path.join(_SHIPPED, name)
        for name in sorted(os.listdir(_SHIPPED))
        if name.endswith(_ENDING)
    }


def find_scenario(name: str) -> Scenario:
    """The scenario of that path, or the shipped one of that name; a path has a slash or ends with ``.toml``.

    Raises:
        RequestError: there is none, or it is wrong.
    """
    if name.endswith(_ENDING) or os.sep in name:
        return load_scenario(name)
    paths = shipped()
    if name not in paths:
        raise RequestError(
            f"no scenario {name!r}: there are {', '.join(paths)}", hint=f"a path has a slash or ends with {_ENDING}"
        )
    return load_scenario(paths[name])


def load_scenario(path: str) -> Scenario:
    """Read a scenario.

    Raises:
        RequestError: there is no such file, or it is wrong; says where.
        HostError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        return parse_scenario(text, path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RequestError(f"scenario {path!r} does not exist or is no file") from error
    except OSError as error:
        raise HostError.from_os(f"cannot read scenario {path!r}", error) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"scenario {path!r} is not UTF-8") from error


def parse_scenario(text: str, path: str) -> Scenario:
    """The scenario that TOML text stands for; ``path`` is only named in errors.

    Raises:
        RequestError: it is wrong; says where.
    """
    where = f"scenario {path!r}"
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # besides what TOMLDecodeError says, a number of thousands of digits
        raise RequestError(f"{where} is not TOML: {error}") from error
    except RecursionError as error:
        raise RequestError(f"{where} is no scenario: it is nested too deeply") from error
    refuse_unknown(where, data, _TOP)
    tables = data.get("case", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise RequestError(f"{where}, case: expected at least one table [[case]]")
    cases: dict[Case, None] = {}
    for number, table in enumerate(tables, 1):
        for case in expand(f"{where}, case {number}", table):
            cases[case] = None
            if len(cases) > MAX_CASES:
                raise RequestError(f"{where}, case {number}: more than {MAX_CASES} cases")
    return Scenario(
        name=_top(where, data, "name", _name, None),
        question=_top(where, data, "question", any_text, None),
        repeats=_top(where, data, "repeats", whole(1, 10_000), 5),
        warm_up=_top(where, data, "warm_up", whole(0, 100), 1),
        seed=_top(where, data, "seed", whole(0, (1 << 63) - 1), 1),
        cases=tuple(cases),
        text=text,
        path=path,
        until=_told(where, data, "until", parse_until),
        budget=_told(where, data, "budget", parse_budget),
        published=parse_published(where, data.get("published", [])),
    )


def with_text(scenario: Scenario) -> Scenario:
    """The scenario with the TOML that stands for what it is now."""
    head = {name: getattr(scenario, name) for name in _HEAD}
    published = [each.to_toml() for each in scenario.published]
    return replace(scenario, text=scenario_text(head, scenario.cases, published))


def _name(value: Any) -> str:
    name = any_text(value)
    if not all(character.isalnum() or character in "-_" for character in name):
        raise RequestError("expected letters, digits, - and _, for it becomes the name of a file")
    return name


def _told(where: str, data: Mapping[str, Any], key: str, check: Check) -> str | None:
    """A text that the check accepts, as it is."""
    if key not in data:
        return None
    checked(where, key, data[key], check)
    return str(data[key])


def _top(where: str, data: Mapping[str, Any], key: str, check: Check, default: Any) -> Any:
    if key not in data:
        if default is None:
            raise RequestError(f"{where}, {key}: missing")
        return default
    return checked(where, key, data[key], check)
