"""``list_disks``, ``commit_disks``: disks of a running QEMU, and the overlays that saves have put them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.disks import AttachedDisk, CommittedDisk, DisksReport

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.machine import QemuMachine


def list_disks(machine: QemuMachine) -> DisksReport:
    """The disks that a QEMU's guest writes to (open_qemu).

    Raises:
        MachineError: QEMU does not list them.
        HostError: we lack the right to see which files it has open.
    """
    from parallel_fixedram.machines.qemu.drives import find_drives
    from parallel_fixedram.machines.qemu.overlays import COMMIT, left_overlays

    left = left_overlays(machine.monitor, find_drives(machine.monitor, machine.pid))
    return _report(machine, (), (), [f"{path!r} is left from a save that was killed: {COMMIT}" for path in left])


def commit_disks(machine: QemuMachine, *, observer: Observer = SILENT) -> DisksReport:
    """Merge the overlays of a QEMU's disks into the images below them while its guest runs, and remove the overlays.

    Files that record one of these images or overlays can no longer be restored with it.

    Args:
        machine: the QEMU (open_qemu).
        observer: told of the phase ``commit``, once for each disk.

    Raises:
        MachineError: QEMU cannot merge one; that disk stays on its overlay, and earlier ones are merged.
        HostError: we lack the right to see which files it has open, or to remove one.
    """
    from parallel_fixedram.machines.qemu.commit import commit_overlays, remove_left
    from parallel_fixedram.machines.qemu.drives import find_drives

    monitor = machine.monitor
    drives = find_drives(monitor, machine.pid)
    removed = remove_left(monitor, drives)
    committed = [
        done for drive in drives if (done := commit_overlays(monitor, drive, observer, machine.merge)) is not None
    ]
    return _report(machine, tuple(committed), removed, ())


def _report(
    machine: QemuMachine, committed: tuple[CommittedDisk, ...], removed: tuple[str, ...], notes: Sequence[str]
) -> DisksReport:
    from parallel_fixedram.machines.qemu.drives import find_drives
    from parallel_fixedram.machines.qemu.overlays import overlays_of_ours

    return DisksReport(
        disks=tuple(
            AttachedDisk(disk=each.disk, overlays=overlays_of_ours(each.disk), shared=each.shared, why_not=each.why_not)
            for each in find_drives(machine.monitor, machine.pid)
        ),
        committed=committed,
        removed=removed,
        notes=tuple(notes),
    )
