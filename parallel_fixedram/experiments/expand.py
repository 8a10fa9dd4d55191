"""From a table of a scenario to its cases: every combination of the listed values, each of them checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.experiments import boot_sector
from parallel_fixedram.experiments.cases import BOOTS, FROM_A_FILE, OF_A_DOMAIN, WAYS, Case
from parallel_fixedram.experiments.parameters import PARAMETERS, QEMU_PARAMETERS, Check, QemuSpec, one_of
from parallel_fixedram.machines.builtin.spec import Workload

MIN_DIRTY_GUEST = 16 * MIB
"""A smaller guest's RAM is saved in a single round, so there is no second one to measure."""
MAX_QEMU_SIZE = 64 * GIB
"""The most of a PC's RAM that surely lies below 4 GiB, where the boot sector can reach it."""
MIN_QEMU_SIZE = 64 * MIB


def expand(where: str, table: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of one table: every combination of its values, the last key turning fastest.

    Raises:
        RequestError: a name or a value is wrong, or values do not go together; says where.
    """
    refuse_unknown(where, table, ("way", *PARAMETERS))
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
        lists[key] = [checked(where, key, each, check) for each in values]
    for combination in product(*lists.values()):
        yield _case(where, dict(zip(lists, combination, strict=True)))


def _qemu_specs(where: str, table: Any) -> Iterator[QemuSpec]:
    """The guests that a table stands for, whose values may be lists, too."""
    where = f"{where}, qemu"
    if not isinstance(table, dict):
        raise RequestError(f'{where}: {_shown(table)}: expected a table such as {{size = "2GiB", data = 0.5}}')
    refuse_unknown(where, table, tuple(QEMU_PARAMETERS))
    if "size" not in table:
        raise RequestError(f"{where}, size: missing")
    lists = {
        key: [
            checked(where, key, each, QEMU_PARAMETERS[key]) for each in (value if isinstance(value, list) else [value])
        ]
        for key, value in table.items()
    }
    for combination in product(*lists.values()):
        spec = QemuSpec(**dict(zip(lists, combination, strict=True)))
        if not MIN_QEMU_SIZE <= spec.size <= MAX_QEMU_SIZE or spec.size % MIB:
            most, least = MAX_QEMU_SIZE >> 20, MIN_QEMU_SIZE >> 20
            raise RequestError(f"{where}, size: {spec.size} bytes, expected whole MiB from {least} to {most}")
        if spec.data_bytes > (most := boot_sector.most_filled_bytes(spec.size)):
            room = most / spec.size
            raise RequestError(f"{where}, data: {spec.data:g}, expected at most {room:.3f} of {spec.size >> 20} MiB")
        if spec.hot > spec.data_bytes or (not spec.dirty_rate and (spec.hot or spec.at_random)):
            raise RequestError(f"{where}: hot and at_random need a dirty_rate, and hot is at most what it fills")
        if spec.watched and not spec.dirty_rate:
            raise RequestError(f"{where}, watched: only with a dirty_rate")
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
    _refuse_impossible_domain(where, case)
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
    if case.live and case.rounds is not None:
        raise RequestError(f"{where}, live: not together with rounds")
    if case.way in FROM_A_FILE and case.qemu:
        _refuse_impossible_start(where, case, case.qemu)
    if case.way == "qemu-load" and case.direct_io == "on" and case.channels == 1:
        raise RequestError(f"{where}, direct_io: QEMU bypasses the page cache only with more than one channel")


def _refuse_impossible_start(where: str, case: Case, qemu: QemuSpec) -> None:
    watched = qemu.watched and case.way in BOOTS
    if qemu.fresh or (qemu.dirty_rate and not watched):
        raise RequestError(f"{where}, qemu: {case.way!r} is about the RAM of a guest that sleeps, or is watched")
    if case.touch and (case.count or 1) > 1:
        raise RequestError(f"{where}, touch: the RAM of one guest is read, not that of {case.count}")
    if watched and (case.touch or (case.count or 1) > 1):
        raise RequestError(f"{where}, qemu: a start that is watched is that of one guest, whose RAM is not read")


def _refuse_impossible_domain(where: str, case: Case) -> None:
    domain = case.qemu is not None and case.qemu.domain
    if case.way.startswith("virsh") and not domain:
        raise RequestError(f"{where}, qemu: {case.way!r} is about a domain of libvirt: domain = true")
    if domain and case.way not in OF_A_DOMAIN:
        raise RequestError(f"{where}, qemu: {case.way!r} is not for a domain, {', '.join(OF_A_DOMAIN)} are")
    if domain and case.qemu and (case.qemu.fresh or case.qemu.watched):
        raise RequestError(f"{where}, qemu: a domain is neither fresh nor watched")
    if case.image_format == "ours" and case.way != "virsh-restore":
        raise RequestError(f"{where}, image_format: 'ours' is what {case.way!r} does not write")
    if case.image_format == "raw" and (case.channels or 1) > 1:
        raise RequestError(f"{where}, channels: libvirt has several only for image_format = 'sparse'")


def checked(where: str, key: str, value: Any, check: Check) -> Any:
    """What a check makes of a value.

    Raises:
        RequestError: it refuses; says where.
    """
    try:
        return check(value)
    except RequestError as error:
        raise RequestError(f"{where}, {key}: {_shown(value)}: {error.message}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def refuse_unknown(where: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse names that nobody knows.

    Raises:
        RequestError: there is one; says where.
    """
    for key in data:
        if key not in known:
            raise RequestError(f"{where}, {key}: unknown, expected one of {', '.join(known)}")
