"""Disks of guests that are started from a file: each guest gets overlays of its own on the recorded images.

::

    the file records: virtio0 --> images[0] --> ...    as they were when the guest was saved; compared with what is
    there
                                    ^   ^
    guest 0 --> overlay ------------+   +------- overlay <-- guest 1

A drive of the command line belongs to a recorded disk if its image is one of the disk's. The top image is tried first,
then the others: after a second save the top one is an overlay, which the command line does not name.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace

from parallel_fixedram.boot.drive_options import DriveOption, drives_of
from parallel_fixedram.boot.overlays import GuestOverlay, PlannedOverlays, find_qemu_img
from parallel_fixedram.boot.plan import Boot
from parallel_fixedram.boot.recorded_disks import is_same_file, refuse_another_chain, refuse_written
from parallel_fixedram.core.boot_options import DiskChoice
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.image.image import Image

_AS_THEY_ARE = "--disks none leaves the disks as the command line has them"
_GONE = "what a guest writes to its disks is removed when it has ended; --disk-folder keeps it"
_LONGEST_LABEL = 48
_OF_A_GUEST = re.compile(r"[0-9a-f]{8}-\d+-disk\d+-[\w-]*\.qcow2", re.ASCII)


def is_of_a_guest(name: str) -> bool:
    """Whether a file name is that of a started guest's overlay in a folder given by the user."""
    return _OF_A_GUEST.fullmatch(name) is not None


def with_disks(boot: Boot, image: Image, choice: DiskChoice | None, run_folder: str) -> Boot:
    """Give guests their disks as requested; no overlay is made yet.

    Args:
        boot: what will be started.
        image: the file.
        choice: what was requested; None for the default.
        run_folder: where each guest has a folder named by its number.

    Raises:
        RequestError: overlays are requested, but the file records no disks; or as for ``on_overlays``.
        ContentsDiffer: as for ``on_overlays``.
        HostError: as for ``on_overlays``.
    """
    choice = choice or DiskChoice()
    if choice.overlays is False:
        return boot
    if not image.disks and (choice.overlays or choice.folder is not None):
        raise RequestError(
            f"{image.path!r} records no disks to make overlays on",
            hint="save --disks overlay records them; guests from this file write to the disks of the command line",
        )
    return on_overlays(boot, image.disks, run_folder, choice.folder)


def on_overlays(boot: Boot, disks: Sequence[Disk], run_folder: str, folder: str | None = None) -> Boot:
    """Put guests on overlays of their own; no overlay is made yet.

    Args:
        boot: what will be started.
        disks: those that get overlays.
        run_folder: where each guest has a folder named by its number.
        folder: where the overlays go; None for the guests' folders.

    Raises:
        RequestError: a disk's drive is not in the command line, or cannot be rewritten; an image or the folder does
            not exist.
        ContentsDiffer: an image was written to since the save.
        HostError: an image cannot be read, or there is no qemu-img.
    """
    if not disks:
        return boot
    if folder is not None and not os.path.isdir(folder):
        raise RequestError(f"there is no folder {folder!r} for overlays")
    refuse_written(disks)
    qemu_img = find_qemu_img(boot.commands[0])
    for disk in disks:
        refuse_another_chain(disk, qemu_img)
    ours = f"{uuid.uuid4().hex[:8]}-"  # other commands may use the same folder
    guests = [
        _with_overlays(
            command,
            disks,
            os.path.join(os.path.abspath(run_folder), str(number), "")
            if folder is None
            else os.path.join(os.path.abspath(folder), f"{ours}{number}-"),
        )
        for number, command in enumerate(boot.commands)
    ]
    return replace(
        boot,
        commands=[arguments for arguments, _, _ in guests],
        changes=[*boot.changes, *guests[0][2], *([_GONE] if folder is None else [])],
        disks=PlannedOverlays(recorded=tuple(disks), overlays=tuple(own for _, own, _ in guests), qemu_img=qemu_img),
    )


def _with_overlays(
    command: Sequence[str], disks: Sequence[Disk], prefix: str
) -> tuple[list[str], tuple[GuestOverlay, ...], list[str]]:
    """A guest's command line, its overlays, and a sentence for each difference from what the user gave.

    Args:
        command: the command line.
        disks: those that get overlays.
        prefix: of the overlays' paths.
    """
    arguments, overlays, changes = list(command), [], []
    drives = drives_of(command)
    found = _drives_for(disks, drives)
    for index, (disk, drive) in enumerate(zip(disks, found, strict=True)):
        label = re.sub(r"[^\w-]+", "-", disk.device, flags=re.ASCII).strip("-")[-_LONGEST_LABEL:]
        overlay = GuestOverlay(
            path=f"{prefix}disk{index}-{label}.qcow2", image=disk.images[0].path, format=disk.images[0].format
        )
        for position, text in drive.on(overlay.path).items():
            arguments[position] = text
        overlays.append(overlay)
        changes.append(f"{drive.text} is now the overlay {overlay.path!r} on {overlay.image!r}")
    left = [each.text for each in drives if each not in found and each.text.startswith("-")]
    changes += [f"{text} is not one of the disks that the file records, and stays as it is" for text in left]
    return arguments, tuple(overlays), changes


def _drives_for(disks: Sequence[Disk], drives: Sequence[DriveOption]) -> list[DriveOption]:
    """The drive of each disk.

    Raises:
        RequestError: there is none or more than one, or it cannot be rewritten.
    """
    found: list[DriveOption] = []
    for disk in disks:
        drive = _drive_for(disk, drives)
        if drive in found:
            other = disks[found.index(drive)].device
            raise _unclear(f"{drive.text} is both disk {other!r} and disk {disk.device!r} of the file")
        if drive.refusal:
            raise _unclear(f"{drive.text}, disk {disk.device!r}, cannot get an overlay: {drive.refusal}")
        found.append(drive)
    return found


def _drive_for(disk: Disk, drives: Sequence[DriveOption]) -> DriveOption:
    for image in disk.images:
        fitting = [drive for drive in drives if drive.path and is_same_file(drive.path, image.path)]
        if len(fitting) > 1:
            both = " and ".join(drive.text for drive in fitting)
            raise _unclear(f"disk {disk.device!r} of the file, on {image.path!r}, has several drives: {both}")
        if fitting:
            return fitting[0]
    has = ", ".join(drive.text for drive in drives if drive.text.startswith("-")) or "none"
    raise RequestError(
        f"no drive of the QEMU command line has image {disk.images[0].path!r} of disk {disk.device!r}; it has {has}",
        hint=f"use the command line that the guest was saved with; -readconfig files are not read; {_AS_THEY_ARE}",
    )


def _unclear(message: str) -> RequestError:
    return RequestError(message, hint=_AS_THEY_ARE)
