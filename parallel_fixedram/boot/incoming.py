"""Check a QEMU that waits for its guest (``-incoming defer``) against the file, have it load the guest, and let it run.

QEMU itself checks neither the lengths of blocks nor that the file has all of them: it silently loads a 256 MiB file
into a 512 MiB guest (QEMU migration/ram.c, parse_ramblock_mapped_ram).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.errors import HostError, MachineError, RequestError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.units import format_exact_size
from parallel_fixedram.core.words import shown
from parallel_fixedram.host import linux
from parallel_fixedram.machines.qemu import discovery
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.target import check_settings, read_target

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

LOAD_SECONDS = 3600.0
"""How long QEMU may take to load a file; if it ends, we notice immediately."""

_WAITS_FOR_CONT = ("paused", "prelaunch", "postmigrate")


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingStream:
    """A mapped-ram stream for QEMU to load, and how."""

    path: str
    fd: int = -1
    """The open file; -1 if QEMU has to open the path. We pass QEMU descriptors of this very file, whatever the path
    means by now, even if QEMU has given up the right to open it (``-run-with user=``)."""
    offset: int = 0
    """Where the stream starts in the file."""
    channels: int = 1
    """multifd channels; 1 means no multifd."""
    direct_io: bool = False
    aside: bool = False
    """Whether the guest will never run: then its disks are neither written nor locked, nor the network informed."""

    def requests(self, name: str = "") -> list[tuple[str, dict[str, Any]]]:
        """The QMP commands that load it, in order, as (command, arguments).

        Args:
            name: QEMU's name for the file, if that is not the path.
        """
        names = [
            *("events", "mapped-ram"),
            *(["multifd"] if self.channels > 1 else []),
            *(["late-block-activate"] if self.aside else []),
        ]
        parameters = {
            **({"multifd-channels": self.channels} if self.channels > 1 else {}),
            **({"direct-io": True} if self.direct_io else {}),
            **({"announce-rounds": 0} if self.aside else {}),
        }
        # not a URI, which cannot express a path with ",offset=" in it
        address = {"transport": "file", "filename": name or self.path, "offset": self.offset}
        return [
            ("migrate-set-capabilities", {"capabilities": [{"capability": name, "state": True} for name in names]}),
            *([("migrate-set-parameters", parameters)] if parameters else []),
            (
                "migrate-incoming",
                {"channels": [{"channel-type": "main", "addr": address}], "exit-on-error": False},
            ),
        ]


def check_machine(monitor: Monitor, machine: str, blocks: Sequence[RAMBlock], target: str = "") -> None:
    """Check a QEMU that waits for its guest against a file.

    Args:
        monitor: of the QEMU.
        machine: the file's machine type.
        blocks: its blocks.
        target: its architecture, if known.

    Raises:
        RequestError: the target or machine type differs, or the name or length of a block.
        MachineError: QEMU was told not to load streams in the default format.
    """
    check_settings(monitor)
    if target and (emulated := read_target(monitor)) != target:
        raise RequestError(f"the file has a guest for {target!r}, this QEMU emulates {emulated!r}")
    if (there := discovery.machine_type(monitor)) != machine:
        hint = _machine_hint(monitor, machine)
        raise RequestError(f"the file has machine type {machine!r}, this QEMU has {there!r}", hint=hint)
    there_are = discovery.ramblocks(monitor)
    machine_has = {block.idstr: block.used_length for block in there_are}
    file_has = {block.idstr: block.used_length for block in blocks}
    for block in there_are:
        if block.read_only and block.idstr in file_has:
            raise RequestError(f"block {block.idstr!r} is read-only in this QEMU, which cannot load it (readonly=on)")
    for idstr, length in file_has.items():
        if (other := machine_has.get(idstr)) is None:
            names = ", ".join(map(repr, machine_has))
            raise RequestError(f"the file has block {idstr!r}, which this QEMU lacks; it has {names}")
        if other != length:
            have, want = format_exact_size(other), format_exact_size(length)
            raise RequestError(f"block {idstr!r} has {want} in the file, {have} in this QEMU")
    for idstr, length in machine_has.items():
        if idstr not in file_has:
            raise RequestError(f"this QEMU has block {idstr!r} of {format_exact_size(length)}, which the file lacks")


def _machine_hint(monitor: Monitor, machine: str) -> str:
    """How to get a QEMU with a machine type; a name without a version means a different type in each release."""
    if machine in discovery.machine_types(monitor):
        return f"start this QEMU with -M {machine}"
    return "this QEMU does not have that machine type: use another version or build"


def load(monitor: Monitor, source: IncomingStream) -> None:
    """Have QEMU load a guest; afterwards its capabilities and parameters are as before.

    Raises:
        MachineError: it refuses or fails.
    """
    before = _settings(monitor)
    with _handed_over(monitor, source) as name, monitor.listen("MIGRATION") as events:
        for command, arguments in source.requests(name):
            monitor.execute(command, arguments)
        while (status := _status(monitor, events.wait(LOAD_SECONDS))) != "completed":
            if status in ("failed", "cancelled"):
                raise MachineError(f"QEMU cannot load the file: {_reason(monitor) or status}")
    for command, arguments in before:
        monitor.execute(command, arguments)


def _status(monitor: Monitor, event: Mapping[str, Any]) -> str:
    match event:
        case {"data": {"status": str(status)}}:
            return status
    raise monitor.error(f"what QEMU tells of its migration is malformed: {shown(str(event))}")


def _reason(monitor: Monitor) -> str:
    """Why a migration failed; empty if QEMU does not say."""
    match monitor.execute("query-migrate"):
        case {"error-desc": str(reason)}:
            return shown(reason)
    return ""


@contextlib.contextmanager
def _handed_over(monitor: Monitor, source: IncomingStream) -> Iterator[str]:
    """The name by which QEMU can open the file inside the block.

    Every QEMU gets descriptors of its own, because copies of one descriptor share their file position. For direct I/O
    QEMU looks in the set for a second one, with O_DIRECT (QEMU util/osdep.c, monitor/fds.c).
    """
    if source.fd < 0:
        yield source.path
        return
    with FdSet(monitor) as fdset:
        for flags in (0, os.O_DIRECT) if source.direct_io else (0,):
            fd = _reopened(source, flags)
            with linux.closing(fd):
                fdset.add(fd)
        yield fdset.path


def _reopened(source: IncomingStream, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{source.fd}", os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise HostError.from_os(f"cannot open {source.path!r}", error) from error


def go_on(monitor: Monitor, *, run: bool) -> str:
    """Let a loaded guest run if ``run`` is set and it only waits for that; returns its run state.

    A guest that had powered off, panicked, or was stopped by a disk error or its watchdog stays as it is. QEMU itself
    does the same, and only the guest's owner knows what to do.

    Raises:
        MachineError: QEMU does not let it run.
    """
    status = discovery.run_state(monitor)
    if run and status in _WAITS_FOR_CONT:
        monitor.execute("cont")
        status = discovery.run_state(monitor)
    if run and status == "inmigrate":  # loaded, but QEMU could not take over its disks
        hint = "another QEMU may use its disk: end that one, give each its own disk (clone: {n}), or use snapshot=on"
        raise MachineError("the guest is loaded, but QEMU does not let it run", hint=hint)
    return status


def _settings(monitor: Monitor) -> list[tuple[str, dict[str, Any]]]:
    """The commands that undo what ``IncomingStream.requests`` sets."""
    parameters = monitor.execute("query-migrate-parameters")
    if not isinstance(parameters, dict):
        raise monitor.malformed("query-migrate-parameters", parameters)
    return [
        ("migrate-set-capabilities", {"capabilities": monitor.execute("query-migrate-capabilities")}),
        (
            "migrate-set-parameters",
            {
                name: parameters[name]
                for name in ("multifd-channels", "direct-io", "announce-rounds")
                if name in parameters
            },
        ),
    ]
