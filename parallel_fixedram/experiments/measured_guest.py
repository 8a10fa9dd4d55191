"""The guest whose RAM the cases of a group save, one after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.units import format_size
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.libvirt_guest import LibvirtGuest, why_no_libvirt
from parallel_fixedram.experiments.parameters import QemuSpec
from parallel_fixedram.experiments.qemu_guest import QemuGuest
from parallel_fixedram.host.facts import free_huge_bytes, memory_bytes
from parallel_fixedram.machines.builtin.process import RAM_IDSTR
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.verbs.open import open_guest, open_libvirt, open_qemu

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.machine import QemuMachine


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredGuest:
    """A guest, and how others get at it."""

    ram: dict[str, str]
    """Its main memory as files, by block name; empty where nobody but a debugger gets at it."""
    stands_still: bool
    """Whether no page changes between two runs."""
    size: int
    """Bytes of RAM."""
    data_bytes: int
    """Bytes that are not zero."""
    spec: GuestSpec | None = None
    """The built-in guest, with its seed."""
    qemu: QemuGuest | None = None
    domain: LibvirtGuest | None = None

    def open_qemu(self) -> QemuMachine:
        """The QEMU as a machine to save, over QMP or through libvirt.

        Raises:
            FixedRamError: it cannot be reached.
        """
        if self.domain:
            return open_libvirt(self.domain.name)
        assert self.qemu is not None, "the scenario's check comes first"
        return open_qemu(self.qemu.qmp, pid=self.qemu.pid)


def why_missing(case: Case) -> str | None:
    """Why there can be no such guest here, as far as that is known without trying; None if nothing is."""
    if case.qemu is None:
        return None
    try:
        tools.find_qemu()
    except tools.Missing as error:
        return error.message
    return why_no_libvirt() if case.qemu.domain else None


def _bytes_touched(way: str, qemu: QemuSpec) -> int:
    """How much memory its runs take; QEMU reads shared RAM that was never touched, and so allocates all of it."""
    return qemu.size if qemu.is_shared and way.startswith("qemu-") else qemu.data_bytes


def _need_room(way: str, qemu: QemuSpec) -> None:
    if qemu.ram == "huge":
        kind, needed, free = "huge pages", qemu.size, free_huge_bytes()
    else:
        kind, needed, free = "memory", _bytes_touched(way, qemu), memory_bytes("MemAvailable")
    if free is not None and needed > free:
        raise tools.Missing(
            f"a guest that takes {format_size(needed)} does not fit: {format_size(free)} of {kind} is available"
        )


@contextlib.contextmanager
def open_source(case: Case, seed: int) -> Iterator[MeasuredGuest]:
    """The guest of a case, which lives until the block is left.

    Args:
        case: names the guest.
        seed: of what it writes, unless its specification has one.

    Raises:
        tools.Missing: there is no QEMU, or not enough memory.
        MachineError: it does not boot.
    """
    if case.qemu:
        _need_room(case.way, case.qemu)
        if case.qemu.domain:
            with LibvirtGuest(case.qemu, seed=seed) as domain:
                yield MeasuredGuest(
                    ram={},
                    stands_still=domain.stands_still,
                    size=case.qemu.size,
                    data_bytes=case.qemu.data_bytes,
                    domain=domain,
                )
            return
        with QemuGuest(case.qemu, seed=seed) as qemu:
            yield MeasuredGuest(
                ram=qemu.shared_ram,
                stands_still=qemu.stands_still,
                size=case.qemu.size,
                data_bytes=case.qemu.data_bytes,
                qemu=qemu,
            )
        return
    spec = seeded(case, seed)
    try:
        guest = open_guest(spec)
    except HostError as error:
        raise tools.Missing(error.message) from error
    with guest:
        yield MeasuredGuest(
            ram={RAM_IDSTR: f"/proc/{os.getpid()}/fd/{guest.memfd}"},
            stands_still=True,
            size=spec.size,
            data_bytes=case.data_bytes,
            spec=spec,
        )


def in_the_process(case: Case, seed: int) -> MeasuredGuest:
    """A built-in guest that the process which is measured starts itself, for each run anew."""
    spec = seeded(case, seed)
    return MeasuredGuest(ram={}, stands_still=False, size=spec.size, data_bytes=case.data_bytes, spec=spec)


def seeded(case: Case, seed: int) -> GuestSpec:
    """The built-in guest of a case, with the scenario's seed unless it names one itself."""
    if case.guest is None:
        raise RequestError(f"{case.id}: not a built-in guest")
    spec = case.guest_spec
    named = any(part.strip().startswith("seed=") for part in case.guest.split(","))
    return spec if named else replace(spec, seed=seed)
