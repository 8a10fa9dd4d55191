"""Cases sorted into groups that share a picture, and into series that share a line; and what these are called."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.core.units import format_count, format_size
from parallel_fixedram.experiments.cases import NO_SAVES
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sample
from parallel_fixedram.experiments.statistics import median

WAY_NAMES = {
    "ours": "ours",
    "ours-threads": "ours, threads",
    "page-by-page": "page by page",
    "sequential": "sequential stream",
    "fio": "fio",
    "fio-pages": "fio, single pages",
    "qemu-file": "QEMU file",
    "qemu-mapped-ram": "QEMU mapped-ram",
    "qemu-multifd": "QEMU multifd",
    "qemu-multifd-direct": "QEMU multifd, direct",
    "qemu-background-snapshot": "QEMU background-snapshot",
    "pause-floor": "stop and cont alone",
    "restore": "restore",
    "clone": "clone",
    "qemu-load": "QEMU load",
    "verify": "verify",
    "virsh-save": "virsh save",
    "virsh-restore": "virsh restore",
    "scan": "zero scan, one process",
    "copy": "memory copy, one process",
}
_WAY_ORDER = tuple(WAY_NAMES)
_DIRECT = {"on": "direct", "off": "buffered", "auto": "direct-io auto"}
_SIZE = re.compile(r",\s*size=[^,]*")

Value = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A case's samples at a place of the x axis."""

    x: float
    samples: tuple[float, ...]
    case: CaseResult

    @property
    def middle(self) -> float:
        """Median of the samples."""
        return median(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one line."""

    label: str
    way: str
    parameters: Mapping[str, Any]
    """What all its cases have in common."""
    points: tuple[Point, ...]
    """Ascending by x."""


_NO_GUESTS_RATE = 1 << 40
"""Bytes a second that no guest can dirty: one that is asked for so much never sleeps (boot_sector.py)."""


def groups(cases: Iterable[CaseResult], by: Sequence[str]) -> list[tuple[Mapping[str, Any], list[CaseResult]]]:
    """Cases with equal values of these parameters, in the order of the first of each."""
    found: dict[str, tuple[Mapping[str, Any], list[CaseResult]]] = {}
    for case in cases:
        key = {name: case.parameters.get(name) for name in by}
        found.setdefault(_text(key), (key, []))[1].append(case)
    return list(found.values())


def whole_saves(run_set: RunSet) -> list[CaseResult]:
    """Cases that save all of a guest's RAM once."""
    return [
        case
        for case in run_set.cases
        if not case.parameters.get("dirty")
        and not case.parameters.get("rounds")
        and case.parameters.get("way") not in NO_SAVES
    ]


def series(
    cases: Iterable[CaseResult],
    x: Callable[[CaseResult], float | None],
    y: Value,
    *,
    not_in_name: Sequence[str],
    normal: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    always: Sequence[str] = (),
) -> list[Series]:
    """Lines over the cases; a case or sample without a value is left out.

    Args:
        cases: of one group.
        x: place of a case.
        y: value of a sample.
        not_in_name: parameters that may differ within a line.
        normal: turns parameters into those that tell lines apart.
        always: parameters that a label names even where all lines have the same.
    """
    points: dict[str, tuple[Mapping[str, Any], list[Point]]] = {}
    for case in cases:
        values = tuple(value for sample in case.samples if (value := y(sample)) is not None)
        place = x(case)
        if not values or place is None:
            continue
        own = {name: value for name, value in normal(case.parameters).items() if name not in not_in_name}
        points.setdefault(_text(own), (own, []))[1].append(Point(x=place, samples=values, case=case))
    order = sorted(points.values(), key=lambda each: _way_number(str(each[0].get("way"))))
    return [
        Series(
            label=_label(own, [other for other, _ in order], always),
            way=str(own.get("way")),
            parameters=own,
            points=tuple(sorted(found, key=lambda point: point.x)),
        )
        for own, found in order
    ]


def case_labels(cases: Sequence[CaseResult], *, not_in_name: Sequence[str], always: Sequence[str] = ()) -> list[str]:
    """A short name for each case of a group: its way, and what tells it from other cases of that way."""
    own = [{name: value for name, value in case.parameters.items() if name not in not_in_name} for case in cases]
    return [_label(each, own, always) for each in own]


def _label(own: Mapping[str, Any], all_of_them: Sequence[Mapping[str, Any]], always: Sequence[str]) -> str:
    same_way = [each for each in all_of_them if each.get("way") == own.get("way")]
    words = [way_name(str(own.get("way")))]
    for name, value in own.items():
        differs = len({_text(each.get(name)) for each in same_way}) > 1
        if name != "way" and (differs or name in always):
            words.append(parameter_text(name, value))
    return ", ".join(words)


def way_name(way: str) -> str:
    """What a way is called in a legend."""
    return WAY_NAMES.get(way, way)


def _way_number(way: str) -> int:
    return _WAY_ORDER.index(way) if way in _WAY_ORDER else len(_WAY_ORDER)


def parameter_text(name: str, value: Any) -> str:
    """A parameter in a few words."""
    match name, value:
        case "direct_io", str():
            return _DIRECT.get(value, value)
        case "gap_pages", _:
            return "gaps as chosen" if isinstance(value, str) else f"gaps up to {value}"
        case "queue_depth", 0:
            return "one write at a time"
        case "queue_depth", str():
            return "many writes in flight"
        case "queue_depth", _:
            return f"{value} writes in flight"
        case "block_size", int():
            return f"{format_size(value)} a call"
        case "channels", 1:
            return "1 channel"
        case "channels", _:
            return f"{value} channels"
        case (("guest" | "qemu"), _):
            return source_text({name: value})
        case "shared", bool():
            return "into shared memory, by our workers" if value else "by QEMU"
        case "touch", bool():
            return "all RAM read afterwards" if value else "RAM not read"
        case "live", bool():
            return "live" if value else "stopped"
        case "count", int():
            return format_count(value, "guest")
        case "cache", str():
            return "cold page cache" if value == "drop" else "warm page cache"
        case "dirty", float():
            return f"{value:.3g} dirty"
    return f"{name.replace('_', ' ')} {value}"


def source_text(parameters: Mapping[str, Any]) -> str:
    """The guest of a case, in a few words."""
    if (guest := parameters.get("guest")) is not None:
        return f"guest {guest}"
    qemu = parameters.get("qemu")
    if not isinstance(qemu, Mapping):
        return "" if qemu is None else f"QEMU {qemu}"
    words = [format_size(qemu["size"])] if isinstance(qemu.get("size"), int) else []
    if isinstance(qemu.get("data"), int | float):
        words.append(f"{_share(qemu['data'])} data")
    if qemu.get("ram"):
        words.append(f"{qemu['ram']} RAM")
    if qemu.get("dirty_rate"):
        rate = qemu["dirty_rate"]
        words.append(f"dirties {format_size(rate)}/s" if rate < _NO_GUESTS_RATE else "never rests")
    if qemu.get("hot"):
        words.append(f"in {format_size(qemu['hot'])}")
    if qemu.get("at_random"):
        words.append("at random")
    if qemu.get("fresh"):
        words.append("fresh")
    if qemu.get("watched"):
        words.append("watched")
    return ("domain, " if qemu.get("domain") else "QEMU guest, ") + ", ".join(words)


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def place_text(run_set: RunSet, parameters: Mapping[str, Any]) -> str:
    """The file system of a case."""
    name = parameters.get("file_system")
    return str(run_set.host.get("file_system") or "unknown file system") if name in (None, "folder") else str(name)


def without_size(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in which guests of different sizes are the same."""
    found = dict(parameters)
    if isinstance(found.get("guest"), str):
        found["guest"] = _SIZE.sub("", found["guest"])
    if isinstance(found.get("qemu"), Mapping):
        found["qemu"] = {name: value for name, value in found["qemu"].items() if name != "size"}
    return found


def moved_bytes(sample: Sample) -> int:
    """Bytes of data that a sample is about: what is not zero, else what was written, else RAM."""
    size = sample.bytes
    return next(value for value in (size.data, size.written, size.ram) if value is not None)


def sample_counts(lines: Iterable[Series]) -> list[int]:
    """How many samples each point has."""
    return [len(point.samples) for line in lines for point in line.points]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
