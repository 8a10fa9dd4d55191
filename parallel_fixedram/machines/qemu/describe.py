"""Describe what a save of a running QEMU would contain, and how each block is reached."""

from __future__ import annotations

from dataclasses import asdict

from parallel_fixedram.core.choice import way_to_capture
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.reports.inspect import InspectQemuReport, QemuBlockReport
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.machines.qemu.machine import QemuMachine
from parallel_fixedram.machines.qemu.memory import ReachedBlock


def describe(machine: QemuMachine) -> InspectQemuReport:
    """Describe what would be saved; nothing is paused.

    Raises:
        MachineError: QEMU does not answer, or not as expected.
    """
    monitor, running = machine.monitor, machine.is_running()
    no_snapshot = _no_snapshot(machine) if running else "the guest stands still"
    capture, _ = way_to_capture(CaptureMode.AUTO, guest_waits=running, no_snapshot=no_snapshot)
    return InspectQemuReport(
        qmp=monitor.name,
        pid=machine.pid,
        qemu_version=".".join(map(str, monitor.version)),
        status=machine.run_state.now(),
        machine=machine.name,
        target=machine.target,
        capture=capture,
        no_snapshot=no_snapshot,
        blocks=tuple(map(_describe_block, machine.memory.blocks)),
    )


def _no_snapshot(machine: QemuMachine) -> str:
    try:
        return machine.address_space().unproven
    except FixedRamError as error:
        return error.message


def _describe_block(reached: ReachedBlock) -> QemuBlockReport:
    pages = reached.block.ramblock().pages
    return QemuBlockReport(
        **asdict(reached.block),
        memory=str(reached.memory.kind),
        path=reached.memory.path,
        data_pages=sum(found.count for found in reached.memory.source.data_ranges(PageRange(0, pages))),
        pages=pages,
    )
