"""A QEMU that waits for its guest (``-incoming defer``): checked against the file, then loaded, then running.

QEMU itself checks neither the length of a block nor that the file has all of them: it loads a 256 MiB file into a 512
MiB guest without a word (QEMU migration/ram.c, parse_ramblock_mapped_ram).
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
"""How long QEMU may take to load a file; its end is noticed immediately."""

_WAITS_FOR_CONT = ("paused", "prelaunch", "postmigrate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A mapped-ram stream as QEMU is told about it."""

    path: str
    fd: int = -1
    """The file, open: QEMU is handed descriptors of the very same one, whatever the path means by now, and although it
    may have given up the right to open it (``-run-with user=``). -1 where it has to open the path."""
    offset: int = 0
    """Where the stream starts in the file."""
    channels: int = 1
    """multifd channels; 1 is no multifd."""
    direct_io: bool = False
    aside: bool = False
    """The guest will not run: its disks are neither written nor locked, and nothing is announced to a network."""

    def requests(self, name: str = "") -> list[tuple[str, dict[str, Any]]]:
        """The QMP commands that load it, in order, as (command, arguments).

        Args:
            name: what QEMU calls the file, if not by its path.
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
        # not as a URI, which has no way to write a path with ",offset=" in it
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
    """Check a machine that waits for its guest against what a file has.

    Args:
        monitor: of the QEMU.
        machine: the file's machine type.
        blocks: its blocks.
        target: its architecture, where it says it.

    Raises:
        RequestError: another target or machine type, or a block of another name or length; names it.
        MachineError: QEMU was told not to load streams as they are by default.
    """
    check_settings(monitor)
    if target and (emulated := read_target(monitor)) != target:
        raise RequestError(f"the file has a guest of target {target!r}, this QEMU emulates {emulated!r}")
    if (there := discovery.machine_type(monitor)) != machine:
        hint = _machine_hint(monitor, machine)
        raise RequestError(f"the file is of machine type {machine!r}, this QEMU is {there!r}", hint=hint)
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
    """How to have the QEMU be of a machine type; a name without a version means another type in every release."""
    if machine in discovery.machine_types(monitor):
        return f"-M {machine} is what this QEMU has to be started with"
    return "this QEMU does not have that machine type: another version, or another build, has"


def load(monitor: Monitor, source: Source) -> None:
    """Have QEMU load a guest; its capabilities and parameters are afterwards what they were.

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
def _handed_over(monitor: Monitor, source: Source) -> Iterator[str]:
    """The name by which a QEMU finds the file meanwhile.

    Every QEMU gets descriptors of its own: copies of one descriptor share their read position. For direct
    I/O QEMU looks in the set for another one, with O_DIRECT (QEMU util/osdep.c, monitor/fds.c).
    """
    if source.fd < 0:
        yield source.path
        return
    with FdSet(monitor) as fdset:
        for flags in (0, os.O_DIRECT) if source.direct_io else (0,):
            fd = _reopened(source, flags)
            try:
                fdset.add(fd)
            finally:
                linux.close(fd)
        yield fdset.path


def _reopened(source: Source, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{source.fd}", os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise HostError.from_os(f"cannot open {source.path!r}", error) from error


def go_on(monitor: Monitor, *, run: bool) -> str:
    """Have a loaded guest run if ``run`` and it only waits for that; returns its run state.

    One that had powered off or panicked, or was stopped for an error of its disk or by its watchdog, stays as it is:
    so QEMU itself does, and only its owner knows what helps.

    Raises:
        MachineError: QEMU does not hand it over, or does not let it run.
    """
    status = discovery.run_state(monitor)
    if run and status in _WAITS_FOR_CONT:
        monitor.execute("cont")
        status = discovery.run_state(monitor)
    if run and status == "inmigrate":  # loaded, but QEMU could not take over its disks
        hint = "another QEMU may have its disk: end that one, or give each its own (clone: {n}), or use snapshot=on"
        raise MachineError("the guest is loaded, but QEMU does not let it run", hint=hint)
    return status


def _settings(monitor: Monitor) -> list[tuple[str, dict[str, Any]]]:
    """The commands that undo what ``Source.requests`` sets."""
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
