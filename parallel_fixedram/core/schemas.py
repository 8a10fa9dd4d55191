"""Schemas: the name and version that every JSON object of the command carries first; one name is one shape.

A version is raised when a key goes away or changes its meaning; new keys may come without that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol, TypeVar

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.plain import from_plain

T = TypeVar("T")

_PREFIX = "parallel_fixedram."

VERSIONS: Mapping[str, int] = {
    "save": 2,
    "plan": 2,
    "restore": 1,
    "boot": 1,
    "boot_plan": 1,
    "guests": 1,
    "clean": 1,
    "disks": 1,
    "verify": 1,
    "diff": 1,
    "inspect": 1,
    "inspect_qemu": 1,
    "inspect_libvirt": 1,
    "caps_table": 1,
    "caps_verdict": 1,
    "try_capture": 1,
    "doctor": 1,
    "demo": 1,
    "bench_list": 1,
    "bench_check": 1,
    "bench_run": 1,
    "bench_plan": 1,
    "bench_ab": 1,
    "bench_compare": 1,
    "bench_history": 1,
    "bench_report": 1,
    "bench_pictures": 1,
    "bench_export": 1,
    "bench_simulate": 1,
    "results": 2,
    "samples": 1,
    "history": 1,
    "progress": 1,
    "error": 1,
}
"""Current version of each schema, by its name without the prefix; docs/json.md says what each is."""


class Report(Protocol):
    """What a verb reports: a dataclass that knows its schema."""

    schema: ClassVar[str]
    """A key of VERSIONS."""
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def verb(self) -> str:
        """Whose report it is."""


def stamped(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with ``schema`` and ``version`` in front.

    Args:
        name: a key of VERSIONS.
        value: the object without them.
    """
    return {"schema": _PREFIX + name, "version": VERSIONS[name], **value}


def check(data: Mapping[str, Any], name: str) -> None:
    """Check the head of an object against what is expected.

    Raises:
        FormatError: it is of another schema or version, or says none.
    """
    expected = stamped(name, {})
    found = {key: data.get(key) for key in expected}
    if found["schema"] != expected["schema"]:
        raise FormatError(f"schema {found['schema']!r}, expected {expected['schema']!r}")
    if found["version"] != expected["version"] or isinstance(found["version"], bool):
        raise FormatError(f"version {found['version']!r} of {expected['schema']}, expected {expected['version']}")


def to_json(report: Report) -> dict[str, Any]:
    """A report as a JSON object, with its schema, version and verb first."""
    return stamped(report.schema, {"verb": report.verb, **asdict(report)})


def from_json(kind: type[T], data: Any) -> T:
    """The report that ``to_json`` made ``data`` of; one that says no schema is older than schemas.

    Raises:
        FormatError: it did not, or it is of another schema or version.
    """
    if isinstance(data, Mapping) and "schema" in data:
        check(data, kind.schema)  # type: ignore[attr-defined]  # all reports have one
    try:
        return from_plain(kind, data)
    except ValueError as error:
        raise FormatError(f"not a {kind.__name__}: {error}") from error
