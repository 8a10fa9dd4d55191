"""A scenario as TOML again: what was changed by options can be stored, and given to another process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parallel_fixedram.experiments.cases import WAYS, Case
from parallel_fixedram.experiments.parameters import QemuSpec

_SOURCES = ("guest", "qemu")


def table_of(case: Case) -> dict[str, Any]:
    """What a scenario has to say to get this case, and no other: whatever is not as by default."""
    defaults: Mapping[str, Any] = WAYS[case.way].defaults
    return {
        name: _of_qemu(value) if name == "qemu" else value
        for name, value in case.parameters().items()
        if name in _SOURCES or name == "way" or value != defaults[name]
    }


def _of_qemu(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = QemuSpec(size=values["size"]).to_json()
    return {name: value for name, value in values.items() if name == "size" or value != plain[name]}


def scenario_text(top: Mapping[str, Any], cases: Sequence[Case], published: Sequence[Mapping[str, Any]] = ()) -> str:
    """TOML that ``parse_scenario`` reads as these cases.

    Args:
        top: what stands above the cases: name, question and so on; None for what is not said.
        cases: each gets a table of its own.
        published: tables of that name.
    """
    return "\n".join(_lines(top, cases, published)) + "\n"


def _lines(top: Mapping[str, Any], cases: Sequence[Case], published: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for name, value in top.items():
        if value is not None:
            yield f"{name} = {_value(value)}"
    tables = [*(("published", table) for table in published), *(("case", table_of(case)) for case in cases)]
    for kind, table in tables:
        yield ""
        yield f"[[{kind}]]"
        for name, value in table.items():
            yield f"{name} = {_value(value)}"


def _value(value: Any) -> str:
    """A text, a number, a truth value or a table of those; TOML writes all but tables as JSON does."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(each)}" for name, each in value.items()) + " }"
    # TOML knows no \\u of half a character, and a text that was read from TOML has none
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
