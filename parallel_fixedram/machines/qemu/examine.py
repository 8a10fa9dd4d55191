"""Find everything that would prevent a save of a running QEMU, not only the first; nothing is touched.

Each finding comes from the same function that decides when the guest is saved (``QemuMachine``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.reports.doctor import Finding, Section, Verdict, found, missed, tried
from parallel_fixedram.core.targets import check_target
from parallel_fixedram.core.units import format_count, format_size
from parallel_fixedram.machines.qemu import discovery
from parallel_fixedram.machines.qemu.device_state import DeviceState
from parallel_fixedram.machines.qemu.discovery import Makeup, QemuBlock
from parallel_fixedram.machines.qemu.drives import disk_names, find_drives
from parallel_fixedram.machines.qemu.machine import GREETING_SECONDS
from parallel_fixedram.machines.qemu.memory import reach
from parallel_fixedram.machines.qemu.monitor import TIMEOUT_SECONDS, Monitor
from parallel_fixedram.machines.qemu.target import check_settings, read_target
from parallel_fixedram.machines.qemu.unreachable import refuse_unreachable_memory
from parallel_fixedram.machines.qemu.unwatched import unwatched


@dataclass(slots=True)
class Examined:
    """What was found.

    Attributes:
        sections: the findings.
        process: QEMU's pid; None if we may not examine it.
        ram: bytes of all RAMBlocks; 0 if they are not known.
        data: bytes of pages that may contain data; None if not all blocks can be reached.
    """

    sections: list[Section] = field(default_factory=list)
    process: int | None = None
    ram: int = 0
    data: int | None = None

    def add(self, name: str, ask: Callable[[], Iterator[Finding]]) -> None:
        """Add a section with all findings, up to an error, which is then the last finding."""
        findings: list[Finding] = []
        try:
            findings.extend(ask())
        except FixedRamError as error:
            findings.append(missed(name, error))
        self.sections.append(Section(name=name, findings=tuple(findings)))


def examine(
    socket_path: str, *, pid: int | None = None, timeout: float | None = None, overlays: bool = False
) -> Examined:
    """Examine a QEMU and its process; raises nothing.

    Args:
        socket_path: as for ``QemuMachine``.
        pid: as for ``QemuMachine``.
        timeout: as for ``QemuMachine``.
        overlays: whether its disks will be put on overlays.
    """
    examined = Examined()
    seconds = TIMEOUT_SECONDS if timeout is None else timeout
    try:
        monitor = Monitor(socket_path, timeout=seconds, greeting_timeout=min(seconds, GREETING_SECONDS))
    except FixedRamError as error:
        examined.sections.append(Section(name="QEMU", findings=(missed("monitor", error),)))
        return examined
    with monitor:
        examined.add("QEMU", lambda: _qemu(monitor, pid, examined))
        examined.add("devices", lambda: _devices(monitor))
        examined.add("memory", lambda: _memory(monitor, examined))
        examined.add("disks", lambda: _disks(monitor, examined.process, overlays))
    return examined


def _qemu(monitor: Monitor, pid: int | None, examined: Examined) -> Iterator[Finding]:
    yield found("monitor", f"{monitor.name}, QEMU {'.'.join(map(str, monitor.version))}")
    yield tried("machine", lambda: _machine(monitor))
    yield tried("state", lambda: discovery.state_to_save(monitor))
    yield tried("migration", lambda: _migration(monitor))
    try:
        with DeviceState(monitor) as state:
            examined.process = discovery.find_process(monitor, state.fd, pid)
        yield found("process", f"number {examined.process}")
    except FixedRamError as error:
        yield missed("process", error)


def _machine(monitor: Monitor) -> str:
    name, target = discovery.machine_type(monitor), read_target(monitor)
    check_target(target, name)
    check_settings(monitor)
    return f"{name}, {target}"


def _migration(monitor: Monitor) -> str:
    discovery.refuse_what_cannot_be_migrated(monitor)
    return "none is under way, and QEMU names nothing that would prevent one"


def _devices(monitor: Monitor) -> Iterator[Finding]:
    """Devices that prevent a save, and how many others there are."""
    makeup, named = discovery.makeup(monitor), set()
    for name, reason in discovery.refused_devices(monitor):
        named.add(name)
        yield Finding(what=name, verdict=Verdict.REFUSED, detail=reason, how="unplug it (device_del), save, plug it in")
    for name, reason in unwatched(monitor, makeup):
        named.add(name)
        yield Finding(what=name, verdict=Verdict.ABSENT, detail=f"no snapshot: {reason}")
    others = [name for name, _ in makeup.devices if name not in named]
    if others or not named:
        yield found("others", f"{format_count(len(others), 'device')} that can be saved")


def _memory(monitor: Monitor, examined: Examined) -> Iterator[Finding]:
    """What prevents a save of any memory, and how each block is reached."""
    makeup = discovery.makeup(monitor)
    examined.ram = sum(block.used_length for block in makeup.blocks)
    yield tried("kind", lambda: _kind(monitor, makeup))
    if (process := examined.process) is None:
        return
    reached: list[int] = []
    for block in makeup.blocks:
        yield tried(block.idstr, partial(_reach, process, block, reached))
    if len(reached) == len(makeup.blocks):
        examined.data = sum(reached)


def _kind(monitor: Monitor, makeup: Makeup) -> str:
    refuse_unreachable_memory(monitor, makeup.blocks)
    return "not confidential, not guest-memfd, not read-only"


def _reach(process: int, block: QemuBlock, reached: list[int]) -> str:
    """How a block is reached; appends to ``reached`` how many of its bytes may be data."""
    with ExitStack() as stack:
        memory, saved = reach(process, block, stack).memory, block.ramblock()
        data = sum(each.count for each in memory.source.data_ranges(PageRange(0, saved.pages)))
    reached.append(data * saved.page_size)
    return ", ".join(filter(None, (format_size(block.used_length), memory.kind, memory.path)))


def _disks(monitor: Monitor, process: int | None, overlays: bool) -> Iterator[Finding]:
    """Whether each disk that the guest writes to could be put on an overlay."""
    names = disk_names(monitor)
    if not names:
        yield found("disks", "none that the guest alone writes to")
    if process is None:
        for name in names:
            yield Finding(what=name, verdict=Verdict.ABSENT, detail="only QEMU's process can tell which file it is in")
        return
    for drive in find_drives(monitor, process):
        path, size = ", ".join(image.path for image in drive.disk.images[:1]), format_size(drive.disk.size)
        what = ", ".join(filter(None, (size, path)))
        if drive.shared:
            yield found(drive.disk.device, f"{what}, shared with other guests (share-rw): it is never saved")
        elif drive.why_not:
            detail = f"{what}: it cannot be put on an overlay: {drive.why_not}"
            verdict = Verdict.REFUSED if overlays else Verdict.ABSENT
            yield Finding(what=drive.disk.device, verdict=verdict, detail=detail, how="--disks none leaves it out")
        else:
            yield found(drive.disk.device, f"{what}: it can be put on an overlay")
