"""What a running QEMU is made of, asked before anything is touched: machine, RAMBlocks, process, what is in the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from parallel_fixedram.qemu.monitor import Monitor

_RAMBLOCK = re.compile(
    r"^ *(?P<name>.*?) +(?P<size>\d+) (?P<unit>[KMG])iB +0x[0-9a-f]+ 0x(?P<used>[0-9a-f]+) 0x(?P<total>[0-9a-f]+)"
    r" 0x(?P<address>[0-9a-f]+)",
    re.MULTILINE,
)
_UNITS = {"K": KIB, "M": MIB, "G": GIB}

_REFUSED_DEVICES = {
    "vfio-": "VFIO devices save their state in steps, beside the device sections",
    "vhost-user-": "a vhost-user back-end holds state, and writes to guest memory, in a process of its own",
    "virtio-mem": "virtio-mem has to be set up before RAM is loaded",
}
"""By the beginning of a device's type: why its guest cannot be saved from outside."""

_REFUSED_NETDEV = re.compile(r"^ *\\? *(\S+): .*\btype=vhost-user\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuBlock:
    """One RAMBlock as QEMU lists it."""

    idstr: str
    host_page_size: int
    """Page size of the memory behind it, bytes."""
    used_length: int
    max_length: int
    address: int
    """Where it lies in QEMU's address space (HVA)."""
    main: bool
    """Whether a memory backend is behind it, rather than firmware or a device."""


def machine_type(monitor: Monitor) -> str:
    """Machine type as it stands in a stream, such as ``pc-q35-10.0``."""
    return str(monitor.execute("qom-get", {"path": "/machine", "property": "type"})).removesuffix("-machine")


def ramblocks(monitor: Monitor) -> list[QemuBlock]:
    """Every RAMBlock that a migration would carry, in QEMU's order: longest first.

    Source: QEMU softmmu/physmem.c (ram_block_format). Blocks without a name are not migrated (qemu_ram_is_migratable).

    Raises:
        MachineError: QEMU lists none.
    """
    backends = {str(each.get("id")) for each in monitor.execute("query-memdev")}
    found = [
        QemuBlock(
            idstr=match["name"],
            host_page_size=int(match["size"]) * _UNITS[match["unit"]],
            used_length=int(match["used"], 16),
            max_length=int(match["total"], 16),
            address=int(match["address"], 16),
            main=match["name"].removeprefix("/objects/") in backends,
        )
        for match in _RAMBLOCK.finditer(monitor.hmp("info ramblock"))
        if match["name"]
    ]
    if not any(block.main for block in found):
        raise MachineError(f"{monitor.name!r}: QEMU lists no RAMBlock of main memory")
    return found


def refuse_what_cannot_be_saved(monitor: Monitor) -> None:
    """Refuse a guest whose state is not all in RAM and device sections.

    Raises:
        MachineError: names the device, or gives QEMU's own reason.
    """
    for name, kind in _devices(monitor):
        for start, reason in _REFUSED_DEVICES.items():
            if kind.startswith(start):
                raise MachineError(f"device {name!r} is a {kind}: {reason}")
    if match := _REFUSED_NETDEV.search(monitor.hmp("info network")):
        raise MachineError(f"netdev {match[1]!r} is vhost-user: {_REFUSED_DEVICES['vhost-user-']}")
    migration = monitor.execute("query-migrate")
    if reasons := migration.get("blocked-reasons"):
        raise MachineError(f"QEMU says that this guest cannot be migrated: {reasons[0]}")
    if migration.get("status") in ("setup", "active", "pre-switchover", "device", "postcopy-active", "cancelling"):
        raise MachineError("a migration of this guest is under way")


def _devices(monitor: Monitor) -> Iterator[tuple[str, str]]:
    """Name and type of every device that the user added."""
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        for child in monitor.execute("qom-list", {"path": path}):
            kind = str(child.get("type", ""))
            if kind.startswith("child<"):
                yield str(child.get("name")), kind.removeprefix("child<").removesuffix(">")


def find_process(monitor: Monitor, fd: int, pid: int | None = None) -> int:
    """The process behind a monitor: the one that holds a descriptor which the monitor has been sent.

    The peer of the socket is only a guess: somebody else may have made the socket and handed it over, or QEMU may have
    forked since. Reading the memory of a wrong process would give a file that looks right.

    Args:
        monitor: has been given ``fd``.
        fd: a descriptor of a file that nobody else has open.
        pid: what the user says.

    Raises:
        MachineError: it cannot be found, or is another one than the user says.
    """
    inode = os.fstat(fd)
    if pid is not None:
        if _holds(pid, inode):
            return pid
        raise MachineError(f"process {pid} is not the QEMU behind {monitor.name!r}, or may not be looked at")
    if _holds(monitor.peer_pid, inode):
        return monitor.peer_pid
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid() and _holds(int(name), inode):
            return int(name)
    raise MachineError(
        f"the process behind {monitor.name!r} cannot be found, or may not be looked at",
        hint="reading guest memory takes the rights of a debugger: run as the user of QEMU, or as root",
    )


def _holds(pid: int, wanted: os.stat_result) -> bool:
    """Whether a process has a file open, as far as we may know."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    if os.path.samestat(entry.stat(), wanted):
                        return True
                except OSError:
                    continue  # closed meanwhile
    except OSError:
        pass
    return False
