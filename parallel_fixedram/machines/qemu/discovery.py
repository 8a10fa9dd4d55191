"""What a running QEMU is made of: machine, RAMBlocks, process, and what prevents a save. Nothing is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.errors import MachineError, RequestError
from parallel_fixedram.core.ramblock import RAMBlock, check_unique
from parallel_fixedram.core.units import GIB, KIB, MIB
from parallel_fixedram.core.words import shown
from parallel_fixedram.format.stream import MAX_MACHINE_NAME
from parallel_fixedram.host.processes.forked import is_gone
from parallel_fixedram.host.processes.unseen import why_proc_is_wrong, why_unseen

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

_RAMBLOCK = re.compile(
    r" *(?P<name>.*?) +(?P<size>[1-9]\d{0,8}) (?P<unit>[KMG])iB +0x[0-9a-f]+ 0x(?P<used>[0-9a-f]{1,16})"
    r" 0x(?P<total>[0-9a-f]{1,16}) 0x(?P<address>[0-9a-f]{1,16})(?: +(?P<access>r[ow]))?( .*)?"
)
_UNITS = {"K": KIB, "M": MIB, "G": GIB}

RUNNING = ("running", "suspended")
"""Run states in which the guest, or its wake-up, changes memory."""

BUSY = ("inmigrate", "finish-migrate", "restore-vm", "save-vm", "colo")
"""Run states in which there is no guest yet, or another operation has it."""

FIRMWARE_BYTES = 8 << 20
"""Blocks up to this size, other than main memory, are saved with all their pages. A PC's largest firmware takes 4 MiB.
Video RAM takes 16 MiB, and starts as zeros in every machine."""

_REFUSED_DEVICES = {
    "vfio-": "VFIO devices save their state in steps, outside the device sections",
    "vhost-user-": "a vhost-user back-end holds state, and writes to guest memory, in a process of its own",
    "vhost-vdpa-": "a vDPA device holds state, and writes to guest memory, outside QEMU",
    "virtio-mem": "virtio-mem has to be set up before RAM is loaded",
}
"""Beginning of a device's type -> why a guest with it cannot be saved from outside."""

_MAY_LOOK = "reading guest memory takes the rights of a debugger: run as QEMU's user, or as root"
_ROOT_MAY_LOOK = (
    "reading guest memory takes the rights of a debugger, CAP_SYS_PTRACE; in a container: --cap-add SYS_PTRACE"
)

# passt, too, speaks vhost-user if it was told to (QEMU 10.1, net/passt.c)
_REFUSED_NETDEV = re.compile(r"^ *\\? *(\S+): .*\btype=(?:passt,)?(vhost-user|vhost-vdpa)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuBlock:
    """One RAMBlock as QEMU lists it."""

    idstr: str
    host_page_size: int
    """Page size of the memory behind it, bytes."""
    used_length: int
    max_length: int
    address: int
    """Where it is in QEMU's address space (HVA)."""
    main: bool
    """Whether it is a memory backend, and not firmware or a device's memory."""
    read_only: bool
    """Whether it is a memory backend that nobody can write to. Read-only firmware does not count: QEMU writes it."""

    @property
    def keeps_zero_pages(self) -> bool:
        """Whether it may be firmware or a table for the guest, which a QEMU fills before it loads a file.

        Pages that are not in the file would keep what that QEMU has put there.
        """
        return not self.main and self.used_length <= FIRMWARE_BYTES

    def ramblock(self) -> RAMBlock:
        """The block as a file describes it.

        Raises:
            RequestError: its name or length is not one that a RAMBlock can have.
        """
        return RAMBlock(
            idstr=self.idstr,
            used_length=self.used_length,
            max_length=self.max_length,
            host_page_size=self.host_page_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Makeup:
    """What a machine is made of, as far as a file depends on it. It may change while the guest runs."""

    blocks: tuple[QemuBlock, ...]
    devices: tuple[tuple[str, str], ...]
    """Name and type of every device that the user added."""


def makeup(monitor: Monitor) -> Makeup:
    """What the machine is made of now.

    Raises:
        MachineError: QEMU's answer is missing or makes no sense.
    """
    return Makeup(blocks=tuple(ramblocks(monitor)), devices=tuple(devices(monitor)))


def run_state(monitor: Monitor) -> str:
    """QEMU's run state, such as ``running``.

    Raises:
        MachineError: QEMU does not answer as expected.
    """
    answer = monitor.execute("query-status")
    if not isinstance(answer, dict) or not isinstance(status := answer.get("status"), str):
        raise monitor.malformed("query-status", answer)
    return status


def machine_type(monitor: Monitor) -> str:
    """Machine type as it is recorded in a stream, such as ``pc-q35-10.0``.

    Raises:
        MachineError: QEMU does not answer as expected.
    """
    answer = monitor.execute("qom-get", {"path": "/machine", "property": "type"})
    if not (isinstance(answer, str) and answer.isascii() and answer.isprintable() and len(answer) <= MAX_MACHINE_NAME):
        raise monitor.malformed("qom-get", answer)
    return answer.removesuffix("-machine")


def machine_types(monitor: Monitor) -> set[str]:
    """Names of all machine types that a QEMU has, without aliases.

    Raises:
        MachineError: QEMU lists none.
    """
    return {str(each.get("name")) for each in listed(monitor, "query-machines")}


def ramblocks(monitor: Monitor) -> list[QemuBlock]:
    """Every RAMBlock that a migration would carry, in QEMU's order: longest first.

    Source: QEMU softmmu/physmem.c (ram_block_format). Blocks without a name are not migrated (qemu_ram_is_migratable).

    Raises:
        MachineError: QEMU lists none, or the list makes no sense.
    """
    backends = {str(each.get("id")) for each in listed(monitor, "query-memdev")}
    head, *lines = monitor.hmp("info ramblock").splitlines() or [""]
    matches = [_RAMBLOCK.fullmatch(line) for line in lines]
    if "Block Name" not in head or None in matches:  # a block that we overlook would be missing in the file
        unclear = lines[matches.index(None)] if None in matches else head
        raise monitor.error(f"cannot read QEMU's list of RAMBlocks: {shown(unclear)!r}")
    found = [
        QemuBlock(
            idstr=match["name"],
            host_page_size=int(match["size"]) * _UNITS[match["unit"]],
            used_length=int(match["used"], 16),
            max_length=int(match["total"], 16),
            address=int(match["address"], 16),
            main=(main := match["name"].removeprefix("/objects/") in backends),
            read_only=main and match["access"] == "ro",
        )
        for match in matches
        if match and match["name"]
    ]
    if not any(block.main for block in found):
        raise monitor.error("QEMU lists no RAMBlock of main memory")
    try:
        check_unique([block.ramblock() for block in found])
    except RequestError as error:
        raise monitor.error(f"QEMU lists impossible RAMBlocks: {error.message}") from error
    return found


def refuse_what_cannot_be_saved(monitor: Monitor) -> None:
    """Refuse a guest whose state is not all in RAM and device sections.

    Raises:
        MachineError: a device prevents it, or QEMU gives a reason.
    """
    for _, reason in refused_devices(monitor):
        raise MachineError(reason)
    refuse_what_cannot_be_migrated(monitor)


def refused_devices(monitor: Monitor) -> Iterator[tuple[str, str]]:
    """Each device or network back-end that prevents a save: its name, and a sentence that says why.

    Raises:
        MachineError: QEMU does not list its devices.
    """
    for name, kind in devices(monitor):
        for start, reason in _REFUSED_DEVICES.items():
            if kind.startswith(start):
                yield name, f"device {name!r} is a {kind}: {reason}"
    for match in _REFUSED_NETDEV.finditer(monitor.hmp("info network")):
        yield match[1], f"netdev {match[1]!r} is {match[2]}: {_REFUSED_DEVICES[f'{match[2]}-']}"


def state_to_save(monitor: Monitor) -> str:
    """QEMU's run state, if there is a guest to save.

    Raises:
        MachineError: there is no guest yet, or another operation has it; or QEMU does not answer.
    """
    if (status := run_state(monitor)) in BUSY:
        raise MachineError(f"{monitor.name!r}: QEMU is in state {status!r}: there is no guest to save")
    return status


def refuse_what_cannot_be_migrated(monitor: Monitor) -> None:
    """Refuse a guest that QEMU itself would not migrate, or is migrating.

    If such a QEMU is asked for its device state it ends, and its guest with it (seen with nvme). This is checked again
    before each time, because a device may have been added since.

    Raises:
        MachineError: QEMU gives a reason, or is migrating.
    """
    migration = monitor.execute("query-migrate")
    if not isinstance(migration, dict) or not isinstance(reasons := migration.get("blocked-reasons", []), list):
        raise monitor.malformed("query-migrate", migration)
    if reasons:
        raise MachineError(f"QEMU says that this guest cannot be migrated: {shown(str(reasons[0]))}")
    if migration.get("status") in ("setup", "active", "pre-switchover", "device", "postcopy-active", "cancelling"):
        raise MachineError("a migration of this guest is under way")


def devices(monitor: Monitor) -> Iterator[tuple[str, str]]:
    """Name and type of every device that the user added.

    Raises:
        MachineError: QEMU does not list them.
    """
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        yield from children(monitor, path)


def children(monitor: Monitor, path: str, of_type: str = "") -> Iterator[tuple[str, str]]:
    """Name and type of every object below another; with ``of_type``, of its properties of that type.

    Raises:
        MachineError: QEMU does not list them.
    """
    for child in listed(monitor, "qom-list", {"path": path}):
        kind = str(child.get("type", ""))
        if kind == of_type or (not of_type and kind.startswith("child<")):
            yield str(child.get("name")), kind.removeprefix("child<").removesuffix(">")


def listed(monitor: Monitor, command: str, arguments: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The objects that a command returns."""
    answer = monitor.execute(command, arguments)
    if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
        raise monitor.malformed(command, answer)
    return answer


def find_process(monitor: Monitor, fd: int, pid: int | None = None, *, likely: int = 0) -> int:
    """The process behind a monitor: the one that has a file open whose descriptor we sent to the monitor.

    The socket's peer is only a guess: somebody else may have made the socket and passed it on, or QEMU may have forked
    since. Reading the memory of the wrong process would give a file that looks right.

    Args:
        monitor: was sent ``fd``.
        fd: a descriptor of a file that nobody else has open.
        pid: the process given by the user.
        likely: the process to examine first, instead of the socket's peer.

    Raises:
        MachineError: it cannot be found, or is not the process given by the user.
    """
    peer, wrong = likely or monitor.peer_pid, why_proc_is_wrong()
    if not wrong:
        name, inode = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
        others = (int(each) for each in os.listdir("/proc") if each.isdecimal())
        for each in chain([peer], others) if pid is None else [pid]:
            if _holds(each, name, inode):
                return each
    what = f"the process behind {monitor.name!r} cannot be found"
    if pid is not None:
        what = f"process {pid} is not the QEMU behind {monitor.name!r}"
    gone = ("there is no such process, or it has ended", "") if pid is not None and is_gone(pid) else None
    reason, hint = (
        wrong or gone or why_unseen(peer and (pid or peer)) or ("", _MAY_LOOK if os.geteuid() else _ROOT_MAY_LOOK)
    )
    raise MachineError(f"{what}: {reason}" if reason else f"{what}, or we may not examine it", hint=hint)


def _holds(pid: int, name: str, wanted: os.stat_result) -> bool:
    """Whether a process other than ours has a file open, as far as we may know.

    Of files with another name we read only the name: if a file's server hangs, asking for more would hang as well.
    """
    if pid == os.getpid():
        return False
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    if os.readlink(entry.path) == name and os.path.samestat(entry.stat(), wanted):
                        return True
                except OSError:
                    continue  # closed meanwhile
    except OSError:
        pass
    return False
