"""Scenarios: a question, and the cases whose samples answer it, as TOML.

::

    name = "channels"
    question = "Do parallel channels pay, and where?"
    repeats = 7                       # samples per case
    warm_up = 1                       # rounds that do not count
    seed = 1                          # of the order and of the guests

    [[case]]                          # one case for every combination of the listed values
    way = ["ours", "fio"]
    guest = "dense,size=1GiB"         # or: qemu = {size = "2GiB", data = 0.5, ram = "memfd"}
    channels = [1, 2, 4]
    direct_io = ["on", "off"]

A parameter that a way does not know is an error, and so is a name that nobody knows. Every error is one line: file,
number of the case, parameter, what was found and what is expected.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.experiments import boot_sector
from parallel_fixedram.experiments.parameters import (
    AUTO,
    PARAMETERS,
    QEMU_PARAMETERS,
    Check,
    QemuSpec,
    any_text,
    one_of,
    whole,
)
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload

MIN_DIRTY_GUEST = 16 * MIB
"""A smaller guest's RAM is saved in a single round, so there is no second one to measure."""
MAX_QEMU_SIZE = 3 * GIB
"""The most of a PC's RAM that surely lies below 4 GiB, where the boot sector can reach it."""
MIN_QEMU_SIZE = 64 * MIB
MAX_CASES = 10_000

_SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scenarios")
_ENDING = ".toml"
_TOP = ("name", "question", "repeats", "warm_up", "seed", "case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way on one source with one value for every parameter that the way knows; None for those it does not."""

    way: str
    guest: str | None = None
    """A specification of the built-in guest."""
    qemu: QemuSpec | None = None
    channels: int | None = None
    direct_io: str | None = None
    gap_pages: int | str | None = None
    shard_pages: int | str | None = None
    queue_depth: int | str | None = None
    """Direct writes in flight of each worker; 0 for one by one."""
    file_system: str | None = None
    calibrate: bool | None = None
    """Whether what writes cost is measured anew before each save, which is not part of its time."""
    durability: str | None = None
    cache: str | None = None
    block_size: int | None = None
    """Bytes of a write."""
    dirty: float | None = None
    """Share of the pages that are dirtied before a second round, which alone is timed."""
    rounds: int | None = None
    """Rounds that a live save sees at most."""
    count: int | None = None
    """Guests started from the file."""
    shared: bool | None = None
    """Whether the guest is given shared memory that workers of ours fill."""

    @property
    def own_guest(self) -> bool:
        """Whether each run has a guest of its own instead of one that all cases of the source take turns with."""
        return self.qemu.fresh if self.qemu else self.way == "ours" and self.rounds is not None

    @property
    def id(self) -> str:
        """Its name: way, source, channels, and whatever is not as by default."""
        defaults = WAYS[self.way].defaults
        words = [self.way]
        for name, value in self._values():
            if name in ("guest", "qemu", "channels") or value != defaults[name]:
                words.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        return " ".join(words)

    @property
    def source(self) -> str:
        """What tells guests apart: cases with the same one share a guest."""
        return f"guest {self.guest}" if self.guest is not None else f"qemu {self.qemu}"

    @property
    def guest_spec(self) -> GuestSpec:
        """The built-in guest; only where there is one."""
        assert self.guest is not None
        return GuestSpec.parse(self.guest)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM."""
        return self.qemu.size if self.qemu else self.guest_spec.size

    @property
    def data_bytes(self) -> int:
        """Bytes that are not zero, before any later writes."""
        return self.qemu.data_bytes if self.qemu else self.guest_spec.written_pages * TARGET_PAGE_SIZE

    def parameters(self) -> dict[str, Any]:
        """Every value in effect, as a JSON object."""
        found = {name: value.to_json() if isinstance(value, QemuSpec) else value for name, value in self._values()}
        return {"way": self.way, **found}

    def _values(self) -> Iterator[tuple[str, Any]]:
        for name in PARAMETERS:
            if (value := getattr(self, name)) is not None:
                yield name, value


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRules:
    """What a way can be asked for."""

    sources: tuple[str, ...]
    """``guest``, ``qemu`` or both."""
    defaults: Mapping[str, Any]
    """The further parameters that it knows, and what they are by default."""
    direct_io: tuple[str, ...] = ("on", "off")


BOOTS = ("restore", "clone", "qemu-load")
"""Ways from a file to running guests: what is written before their time begins is the file."""

_FILE = {"file_system": "folder", "cache": "keep"}
_NAIVE = {**_FILE, "direct_io": "off"}

WAYS: Mapping[str, WayRules] = {
    "ours": WayRules(
        sources=("guest", "qemu"),
        defaults={
            **_FILE,
            "channels": 1,
            "direct_io": AUTO,
            "gap_pages": AUTO,
            "shard_pages": AUTO,
            "queue_depth": AUTO,
            "calibrate": False,
            "durability": "full",
            "dirty": None,
            "rounds": None,
        },
        direct_io=("on", "off", AUTO),
    ),
    "ours-threads": WayRules(sources=("guest",), defaults={**_NAIVE, "channels": 1}),
    "page-by-page": WayRules(sources=("guest",), defaults=_NAIVE),
    "sequential": WayRules(sources=("guest",), defaults=_FILE),
    "fio": WayRules(sources=("guest", "qemu"), defaults={**_NAIVE, "channels": 1, "block_size": MIB}),
    "fio-pages": WayRules(sources=("guest",), defaults={**_NAIVE, "queue_depth": 64}),
    "qemu-file": WayRules(sources=("qemu",), defaults={**_FILE, "rounds": None}),
    "qemu-mapped-ram": WayRules(sources=("qemu",), defaults={**_FILE, "rounds": None}),
    "qemu-multifd": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 2}),
    "qemu-multifd-direct": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 2}),
    "restore": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 1, "shared": False}),
    "clone": WayRules(sources=("qemu",), defaults={**_FILE, "count": 1}),
    "qemu-load": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 1, "direct_io": "off"}),
    "scan": WayRules(sources=("guest",), defaults={}),
    "copy": WayRules(sources=("guest",), defaults={}),
}
"""Every way, and which parameters it knows."""


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
    _refuse_unknown(where, data, _TOP)
    tables = data.get("case", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise RequestError(f"{where}, case: expected at least one table [[case]]")
    cases: dict[Case, None] = {}
    for number, table in enumerate(tables, 1):
        for case in _expand(f"{where}, case {number}", table):
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
    )


def _name(value: Any) -> str:
    name = any_text(value)
    if not all(character.isalnum() or character in "-_" for character in name):
        raise RequestError("expected letters, digits, - and _, for it becomes the name of a file")
    return name


def _top(where: str, data: Mapping[str, Any], key: str, check: Check, default: Any) -> Any:
    if key not in data:
        if default is None:
            raise RequestError(f"{where}, {key}: missing")
        return default
    return _checked(where, key, data[key], check)


def _checked(where: str, key: str, value: Any, check: Check) -> Any:
    try:
        return check(value)
    except RequestError as error:
        raise RequestError(f"{where}, {key}: {_shown(value)}: {error.message}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refuse_unknown(where: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in data:
        if key not in known:
            raise RequestError(f"{where}, {key}: unknown, expected one of {', '.join(known)}")


def _expand(where: str, table: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of one table: every combination of its values, the last key turning fastest."""
    _refuse_unknown(where, table, ("way", *PARAMETERS))
    if "way" not in table:
        raise RequestError(f"{where}, way: missing, expected one of {', '.join(WAYS)}")
    lists = {}
    for key, value in table.items():
        values = value if isinstance(value, list) else [value]
        if not values:
            raise RequestError(f"{where}, {key}: an empty list")
        check = one_of(*WAYS) if key == "way" else PARAMETERS[key]
        if key == "qemu":
            values = [spec for each in values for spec in _qemu_specs(where, each)]
        lists[key] = [_checked(where, key, each, check) for each in values]
    for combination in product(*lists.values()):
        yield _case(where, dict(zip(lists, combination, strict=True)))


def _qemu_specs(where: str, table: Any) -> Iterator[QemuSpec]:
    """The guests that a table stands for, whose values may be lists, too."""
    where = f"{where}, qemu"
    if not isinstance(table, dict):
        raise RequestError(f'{where}: {_shown(table)}: expected a table such as {{size = "2GiB", data = 0.5}}')
    _refuse_unknown(where, table, tuple(QEMU_PARAMETERS))
    if "size" not in table:
        raise RequestError(f"{where}, size: missing")
    lists = {
        key: [
            _checked(where, key, each, QEMU_PARAMETERS[key]) for each in (value if isinstance(value, list) else [value])
        ]
        for key, value in table.items()
    }
    for combination in product(*lists.values()):
        spec = QemuSpec(**dict(zip(lists, combination, strict=True)))
        if not MIN_QEMU_SIZE <= spec.size <= MAX_QEMU_SIZE or spec.size % MIB:
            most, least = MAX_QEMU_SIZE >> 20, MIN_QEMU_SIZE >> 20
            raise RequestError(f"{where}, size: {spec.size} bytes, expected whole MiB from {least} to {most}")
        if boot_sector.FIRST + spec.data_bytes > spec.size - boot_sector.RESERVED_AT_END:
            room = 1 - (boot_sector.FIRST + boot_sector.RESERVED_AT_END) / spec.size
            raise RequestError(f"{where}, data: {spec.data:g}, expected at most {room:.3f} of {spec.size >> 20} MiB")
        yield spec


def _case(where: str, values: dict[str, Any]) -> Case:
    """One combination, with defaults; refuses what does not go together."""
    way = values.pop("way")
    rules = WAYS[way]
    sources = [name for name in ("guest", "qemu") if name in values]
    if len(sources) != 1 or sources[0] not in rules.sources:
        found = " and ".join(sources) or "none"
        raise RequestError(f"{where}, way: {way!r} needs one source, {' or '.join(rules.sources)}; found {found}")
    for name, value in values.items():
        if name not in rules.defaults and name not in sources:
            known = ", ".join(name for name in PARAMETERS if name in rules.defaults) or "none but the source"
            raise RequestError(f"{where}, {name}: not a parameter of {way!r}, which knows {known}")
        if name == "direct_io" and value not in rules.direct_io:
            raise RequestError(f"{where}, direct_io: {value!r} with {way!r}, expected {' or '.join(rules.direct_io)}")
    case = Case(way=way, **{**rules.defaults, **values})
    _refuse_impossible(where, case)
    return case


def _refuse_impossible(where: str, case: Case) -> None:
    if case.dirty is not None:
        if case.rounds is not None:
            raise RequestError(f"{where}, dirty: not together with rounds")
        if case.qemu or case.guest_spec.workload is not Workload.DENSE or case.guest_spec.size < MIN_DIRTY_GUEST:
            least = MIN_DIRTY_GUEST >> 20
            raise RequestError(f"{where}, dirty: needs guest = 'dense,...' of {least} MiB or more")
    if case.rounds is not None:
        if case.way == "ours" and case.qemu:
            raise RequestError(f"{where}, rounds: 'ours' saves a QEMU in one round, give guest")
        if case.way != "ours" and not (case.qemu and case.qemu.dirty_rate):
            raise RequestError(f"{where}, rounds: needs qemu with a dirty_rate")
    if case.way in BOOTS and case.qemu and (case.qemu.dirty_rate or case.qemu.fresh):
        raise RequestError(f"{where}, qemu: {case.way!r} starts guests that are to be equal to one that sleeps")
    if case.way == "qemu-load" and case.direct_io == "on" and case.channels == 1:
        raise RequestError(f"{where}, direct_io: QEMU loads past the page cache with more than one channel only")
