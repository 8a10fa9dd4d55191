"""Schemas: the name and version that every JSON object of the command carries first; one name is one shape.

A version is raised when a key goes away or changes its meaning; new keys may come without that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel_fixedram.core.errors import FormatError

_PREFIX = "parallel_fixedram."

VERSIONS: Mapping[str, int] = {
    "save": 2,
    "plan": 2,
    "restore": 1,
    "boot": 1,
    "boot_plan": 1,
    "guests": 1,
    "verify": 1,
    "diff": 1,
    "inspect": 1,
    "inspect_qemu": 1,
    "caps_table": 1,
    "caps_verdict": 1,
    "demo": 1,
    "bench_list": 1,
    "bench_run": 1,
    "bench_plan": 1,
    "bench_compare": 1,
    "bench_report": 1,
    "bench_pictures": 1,
    "bench_simulate": 1,
    "results": 2,
    "error": 1,
}
"""Current version of each schema, by its name without the prefix; docs/json.md says what each is."""


def stamped(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with ``schema`` and ``version`` in front.

    Args:
        name: a key of VERSIONS.
        value: the object without them.
    """
    return {"schema": _PREFIX + name, "version": VERSIONS[name], **value}


def check(data: Mapping[str, Any], name: str) -> None:
    """Hold the head of an object against what is expected.

    Raises:
        FormatError: it is of another schema or version, or says none.
    """
    expected = stamped(name, {})
    found = {key: data.get(key) for key in expected}
    if found["schema"] != expected["schema"]:
        raise FormatError(f"schema {found['schema']!r}, expected {expected['schema']!r}")
    if found["version"] != expected["version"] or isinstance(found["version"], bool):
        raise FormatError(f"version {found['version']!r} of {expected['schema']}, expected {expected['version']}")
