"""Overlays in a folder: those that saves made for a running guest's disks, and those of guests that were started.

An overlay with contents has what a guest wrote, or belongs to a saved file: it is listed, and never removed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from parallel_fixedram.boot.disks import is_of_a_guest
from parallel_fixedram.core.reports.clean import Kind, Leftover
from parallel_fixedram.core.units import format_size
from parallel_fixedram.format.qcow2 import HEAD_BYTES, backing_file
from parallel_fixedram.host.files.left_file import files_in, head_of, judged
from parallel_fixedram.machines.qemu.overlays import is_ours

_OF_A_DISK = (
    "it contains what a guest wrote since a save: disks commit --qmp merges it while that guest runs, "
    "qemu-img commit when it has ended, and rm discards it"
)
_OF_A_GUEST = (
    "it contains what a guest started from a file wrote: qemu-img commit merges it into the image, which spoils the "
    "file for other guests, and rm discards it"
)


def left_overlays(path: str, folder: int, *, remove: bool) -> Iterator[Leftover]:
    """A finding for each.

    Args:
        path: the folder.
        folder: descriptor of the folder.
        remove: whether to remove empty ones that nobody has open.

    Raises:
        OSError: the folder cannot be read.
    """
    for name, status in files_in(folder, lambda name: is_ours(name) or is_of_a_guest(name)):
        empty = not status.st_size
        if empty:
            what = "an overlay that was never written to, without even a header"
        else:
            what = f"an overlay{_on(head_of(name, folder, HEAD_BYTES))}, {format_size(status.st_blocks * 512)} on disk"
        found = Leftover(
            path=os.path.join(path, name),
            kind=Kind.OVERLAY,
            what=what,
            held=False,
            removed=False,
            why_not="" if empty else (_OF_A_GUEST if is_of_a_guest(name) else _OF_A_DISK),
        )
        if told := judged(found, name, folder, remove=remove):
            yield told


def _on(head: bytes) -> str:
    """What an image's backing file is, to follow its name."""
    behind = backing_file(head)
    if behind is None:
        return " whose header makes no sense"
    return f" on {os.fsdecode(behind)!r}" if behind else " on nothing"
