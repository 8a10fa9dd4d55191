"""Merge our overlays back into the images below them while the guest runs.

::

    disk --> overlay --> overlay --> image        block-commit of the top one; when all is copied,
    disk --> image                                job-complete: the disk goes on with the image

Source: QEMU docs/interop/live-block-operations.rst (active block commit).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.disks import CommittedDisk
from parallel_fixedram.machines.qemu.drives import Drive
from parallel_fixedram.machines.qemu.jobs import cancel_job, end_job, find_job, follow_job, show_merge
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.overlays import PREFIX, is_ours, left_overlays, overlays_of_ours, remove_nodes

Merge = Callable[[Drive, int, str, Observer], int]
"""Merges the top image of a disk into one below it. Arguments: the disk, the index of that image from the top, the
beginning of an error message, the observer. Returns the number of bytes copied."""
_LOCKED = re.compile("failed to get .*lock", re.IGNORECASE)


def commit_overlays(monitor: Monitor, drive: Drive, observer: Observer, merge: Merge) -> CommittedDisk | None:
    """Merge a disk's overlays, if they are ours, into the image below them, and remove them.

    Args:
        monitor: of the QEMU.
        drive: the disk.
        observer: told about progress.
        merge: does the merging.

    Returns:
        What was done; None if the disk has no overlay of ours.

    Raises:
        MachineError: it is not possible, or QEMU failed; the disk stays on its overlay.
    """
    paths = [each.path for each in drive.disk.images]
    ours = overlays_of_ours(drive.disk)
    name = f"{monitor.name!r}: disk {drive.disk.device!r}"
    if not paths and drive.disk.node.startswith(PREFIX):
        raise MachineError(f"{name} is on an overlay of ours that cannot be examined: {drive.why_not}")
    if not ours and not any(map(is_ours, paths)):
        return None
    if not ours:
        raise MachineError(f"{name} is on {paths[0]!r}, somebody else's overlay on top of one of ours")
    if ours == len(paths):
        raise MachineError(f"{name}: the image below {paths[-1]!r} cannot be examined: {drive.why_not}")
    done = merge(drive, ours, f"{name} cannot be merged into {paths[ours]!r}", observer)
    for node, path in zip(drive.nodes[:ours], paths[:ours], strict=True):
        remove_nodes(monitor, node)
        _remove(path)
    return CommittedDisk(device=drive.disk.device, image=paths[ours], overlays=tuple(paths[:ours]), bytes=done)


def remove_left(monitor: Monitor, drives: Sequence[Drive]) -> tuple[str, ...]:
    """Remove overlays that were made but never used; returns their paths.

    Raises:
        MachineError: QEMU does not answer.
    """
    removed = left_overlays(monitor, drives)
    for path, node in removed.items():
        remove_nodes(monitor, node)
        if is_ours(path):
            _remove(path)
    return tuple(removed)


def merge(monitor: Monitor, drive: Drive, into: int, what: str, observer: Observer) -> int:
    """Have QEMU merge the top image into one below it, or follow such a job if there is one; returns the bytes copied.

    Raises:
        MachineError: QEMU refuses or fails.
    """
    top = drive.disk.node
    job = f"commit-{top.removeprefix('#')}"
    if (begun := find_job(monitor, job)) and begun.get("status") == "concluded":
        with contextlib.suppress(MachineError):  # an earlier job; whether it failed no longer matters
            end_job(monitor, what, job)
        begun = None
    if not begun:
        arguments = {"job-id": job, "device": top, "base-node": drive.nodes[into], "auto-dismiss": False}
        try:
            monitor.execute("block-commit", arguments)
        except MachineError as error:
            image = drive.disk.images[into].path
            hint = f"another QEMU may be using {image!r}, such as a guest started from a file that records it"
            raise MachineError(error.message, hint=hint if _LOCKED.search(error.message) else "") from error
    try:
        return show_merge(follow_job(monitor, what, job), observer)
    except BaseException:
        with contextlib.suppress(FixedRamError):  # it reports that it was cancelled, or QEMU is gone
            cancel_job(monitor, what, job)
        raise


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError.from_os(f"{path!r} is no longer used, but cannot be removed", error) from error
