"""What a running QEMU is made of, asked before anything is touched: machine, RAMBlocks, process, what is in the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.errors import MachineError, RequestError
from parallel_fixedram.core.ramblock import RAMBlock, check_unique
from parallel_fixedram.core.stream import MAX_MACHINE_NAME
from parallel_fixedram.core.units import GIB, KIB, MIB
from parallel_fixedram.qemu.session import shown

if TYPE_CHECKING:
    from parallel_fixedram.qemu.monitor import Monitor

_RAMBLOCK = re.compile(
    r" *(?P<name>.*?) +(?P<size>[1-9]\d{0,8}) (?P<unit>[KMG])iB +0x[0-9a-f]+ 0x(?P<used>[0-9a-f]{1,16})"
    r" 0x(?P<total>[0-9a-f]{1,16}) 0x(?P<address>[0-9a-f]{1,16})( .*)?"
)
_UNITS = {"K": KIB, "M": MIB, "G": GIB}

RUNNING = ("running", "suspended")
"""Run states in which the guest, or its wake-up, changes memory."""

_REFUSED_DEVICES = {
    "vfio-": "VFIO devices save their state in steps, beside the device sections",
    "vhost-user-": "a vhost-user back-end holds state, and writes to guest memory, in a process of its own",
    "virtio-mem": "virtio-mem has to be set up before RAM is loaded",
}
"""By the beginning of a device's type: why its guest cannot be saved from outside."""

_MAY_LOOK = "reading guest memory takes the rights of a debugger: run as the user of QEMU, or as root"

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

    def ramblock(self) -> RAMBlock:
        """What of it stands in a file.

        Raises:
            RequestError: a name or a length that no RAMBlock has.
        """
        return RAMBlock(
            idstr=self.idstr,
            used_length=self.used_length,
            max_length=self.max_length,
            host_page_size=self.host_page_size,
        )


def run_state(monitor: Monitor) -> str:
    """QEMU's run state, such as ``running``.

    Raises:
        MachineError: QEMU does not say.
    """
    answer = monitor.execute("query-status")
    if not isinstance(answer, dict) or not isinstance(status := answer.get("status"), str):
        raise _malformed(monitor, "query-status", answer)
    return status


def machine_type(monitor: Monitor) -> str:
    """Machine type as it stands in a stream, such as ``pc-q35-10.0``.

    Raises:
        MachineError: QEMU does not say.
    """
    answer = monitor.execute("qom-get", {"path": "/machine", "property": "type"})
    if not (isinstance(answer, str) and answer.isascii() and answer.isprintable() and len(answer) <= MAX_MACHINE_NAME):
        raise _malformed(monitor, "qom-get", answer)
    return answer.removesuffix("-machine")


def ramblocks(monitor: Monitor) -> list[QemuBlock]:
    """Every RAMBlock that a migration would carry, in QEMU's order: longest first.

    Source: QEMU softmmu/physmem.c (ram_block_format). Blocks without a name are not migrated (qemu_ram_is_migratable).

    Raises:
        MachineError: QEMU lists none, or what cannot be any.
    """
    backends = {str(each.get("id")) for each in _listed(monitor, "query-memdev")}
    head, *lines = monitor.hmp("info ramblock").splitlines() or [""]
    matches = [_RAMBLOCK.fullmatch(line) for line in lines]
    if "Block Name" not in head or None in matches:  # a block that is overlooked would be missing in the file
        unclear = lines[matches.index(None)] if None in matches else head
        raise MachineError(
            f"QMP socket {monitor.name!r}: QEMU lists no RAMBlocks: {shown(unclear)!r} is not understood"
        )
    found = [
        QemuBlock(
            idstr=match["name"],
            host_page_size=int(match["size"]) * _UNITS[match["unit"]],
            used_length=int(match["used"], 16),
            max_length=int(match["total"], 16),
            address=int(match["address"], 16),
            main=match["name"].removeprefix("/objects/") in backends,
        )
        for match in matches
        if match and match["name"]
    ]
    if not any(block.main for block in found):
        raise MachineError(f"QMP socket {monitor.name!r}: QEMU lists no RAMBlock of main memory")
    try:
        check_unique([block.ramblock() for block in found])
    except RequestError as error:
        what = "QEMU lists RAMBlocks that cannot be"
        raise MachineError(f"QMP socket {monitor.name!r}: {what}: {error.message}") from error
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
    if not isinstance(migration, dict) or not isinstance(reasons := migration.get("blocked-reasons", []), list):
        raise _malformed(monitor, "query-migrate", migration)
    if reasons:
        raise MachineError(f"QEMU says that this guest cannot be migrated: {shown(str(reasons[0]))}")
    if migration.get("status") in ("setup", "active", "pre-switchover", "device", "postcopy-active", "cancelling"):
        raise MachineError("a migration of this guest is under way")


def _devices(monitor: Monitor) -> Iterator[tuple[str, str]]:
    """Name and type of every device that the user added."""
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        for child in _listed(monitor, "qom-list", {"path": path}):
            kind = str(child.get("type", ""))
            if kind.startswith("child<"):
                yield str(child.get("name")), kind.removeprefix("child<").removesuffix(">")


def _listed(monitor: Monitor, command: str, arguments: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The objects that a command returns."""
    answer = monitor.execute(command, arguments)
    if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
        raise _malformed(monitor, command, answer)
    return answer


def _malformed(monitor: Monitor, command: str, answer: object) -> MachineError:
    text = shown(str(answer))
    return MachineError(f"QMP socket {monitor.name!r}: QEMU's answer to {command!r} is malformed: {text}")


def find_process(monitor: Monitor, fd: int, pid: int | None = None, *, likely: int = 0) -> int:
    """The process behind a monitor: the one that holds a descriptor which the monitor has been sent.

    The peer of the socket is only a guess: somebody else may have made the socket and handed it over, or QEMU may have
    forked since. Reading the memory of a wrong process would give a file that looks right.

    Args:
        monitor: has been given ``fd``.
        fd: a descriptor of a file that nobody else has open.
        pid: what the user says.
        likely: where to look first, instead of at the socket's peer.

    Raises:
        MachineError: it cannot be found, or is another one than the user says.
    """
    inode = os.fstat(fd)
    if pid is not None:
        if _holds(pid, inode):
            return pid
        raise MachineError(
            f"process {pid} is not the QEMU behind {monitor.name!r}, or may not be looked at", hint=_MAY_LOOK
        )
    first = likely or monitor.peer_pid
    if _holds(first, inode):
        return first
    for name in os.listdir("/proc"):
        if name.isdecimal() and _holds(int(name), inode):
            return int(name)
    raise MachineError(f"the process behind {monitor.name!r} cannot be found, or may not be looked at", hint=_MAY_LOOK)


def _holds(pid: int, wanted: os.stat_result) -> bool:
    """Whether another process has a file open, as far as we may know; that we have it ourselves says nothing."""
    if pid == os.getpid():
        return False
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
