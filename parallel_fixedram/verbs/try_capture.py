"""``try_capture``: take snapshots of a running guest, check each against a copy of its RAM, and throw it away.

The outcome is remembered for this host (``machines/qemu/trials.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from parallel_fixedram.core.errors import InstantDiffers, MachineError, RequestError, SnapshotFailed
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.save import FaultSeconds, SaveReport
from parallel_fixedram.core.reports.try_capture import TriedSnapshot, TryCaptureReport
from parallel_fixedram.core.save_options import (
    TRIAL_SNAPSHOTS,
    CaptureMode,
    Capturing,
    Disks,
    DisksMode,
    Durability,
    Gate,
    Publishing,
)
from parallel_fixedram.verbs.save import save
from parallel_fixedram.verbs.temporary import temporary_folder

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.machine import QemuMachine
    from parallel_fixedram.machines.qemu.trials import Setting

NOTHING = TriedSnapshot(
    wrong_pages=0,
    given_up="",
    pause=0.0,
    stop=0.0,
    device_state=0.0,
    cont=0.0,
    fix=0.0,
    total=0.0,
    faults=0,
    fault_seconds=FaultSeconds(median=0.0, p99=0.0, max=0.0),
)


def try_capture(
    machine: Callable[[], QemuMachine],
    *,
    count: int = TRIAL_SNAPSHOTS,
    folder: str | None = None,
    gate: Gate | None = None,
    capture: Capturing | None = None,
    observer: Observer = SILENT,
) -> TryCaptureReport:
    """Take snapshots of a running QEMU guest, compare each page by page with a copy of its RAM, and throw it away.

    For each snapshot the guest stands still for as long as a copy of its RAM takes.

    Args:
        machine: opens the QEMU; called once, and once again for each snapshot.
        count: number of snapshots.
        folder: where files are written, one after another; None for the system's folder for temporary files.
        gate: channels and capabilities; None for one channel.
        capture: limits of a snapshot; its mode is ignored.
        observer: told of phases, bytes and notes of each snapshot.

    Returns:
        The outcome; ``passed`` is False if anything was wrong.

    Raises:
        RequestError: ``count`` is below 1.
        MachineError: the guest does not run, or no snapshot of it is possible.
        HostError: we lack a right, or the kernel a feature, for a snapshot; or there is no space, or no memory for a
            copy.
    """
    if count < 1:
        raise RequestError(f"{count} snapshots, at least 1 is needed")
    with machine() as opened:
        if not opened.is_running():
            raise MachineError("the guest stands still: only a running guest can be captured by a snapshot")
        opened.address_space()
        setting, name = opened.setting(), opened.name
        ram = sum(each.block.used_length for each in opened.guest_blocks())
    capture = replace(capture or Capturing(), mode=CaptureMode.SNAPSHOT, check_instant=True)
    with temporary_folder(folder) as made:
        tried = [
            _try_once(machine, os.path.join(made, f"{number}.mr"), gate, capture, observer) for number in range(count)
        ]
    return _report(tried, setting, name, ram)


def _report(tried: Sequence[TriedSnapshot], setting: Setting, name: str, ram: int) -> TryCaptureReport:
    """The report; the outcome is remembered if there are enough snapshots."""
    wrong, given_up = sum(each.wrong_pages for each in tried), sum(bool(each.given_up) for each in tried)
    passed = not wrong and not given_up
    shows = wrong or (passed and len(tried) >= TRIAL_SNAPSHOTS)
    return TryCaptureReport(
        machine=name,
        ram=ram,
        qemu_version=setting.qemu,
        accelerator=setting.accelerator,
        kernel=os.uname().release,
        snapshots=tuple(tried),
        wrong_pages=wrong,
        given_up=given_up,
        passed=passed,
        remembered=setting.remember(passed=passed) if shows else None,
    )


def _try_once(
    machine: Callable[[], QemuMachine], path: str, gate: Gate | None, capture: Capturing, observer: Observer
) -> TriedSnapshot:
    try:
        report = save(
            machine,
            path,
            gate=gate,
            capture=capture,
            publishing=Publishing(durability=Durability.NONE),
            disks=Disks(mode=DisksMode.NONE),
            observer=observer,
        )
    except InstantDiffers as error:
        return replace(NOTHING, wrong_pages=max(error.pages, 1))
    except SnapshotFailed as error:
        return replace(NOTHING, given_up=error.message)
    os.unlink(path)
    return _tried(report)


def _tried(report: SaveReport) -> TriedSnapshot:
    seconds, snapshot = report.seconds, report.snapshot
    if report.choice.capture != CaptureMode.SNAPSHOT:
        raise MachineError("somebody stopped the guest: only a running guest can be captured by a snapshot")
    if snapshot is None:
        return replace(NOTHING, given_up="a process of ours was killed while the guest's memory was being released")
    checked = next(phase.seconds for phase in report.phases if phase.name == "check")
    return TriedSnapshot(
        wrong_pages=0,
        given_up="",
        pause=seconds.pause - seconds.copy,
        stop=seconds.stop,
        device_state=seconds.device_state,
        cont=seconds.cont,
        fix=snapshot.fix_seconds,
        total=seconds.total - seconds.copy - checked,
        faults=snapshot.faults,
        fault_seconds=snapshot.fault_seconds,
    )
