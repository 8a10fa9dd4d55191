"""Images that a file records, compared with what is there now: a guest's memory fits their contents of that instant."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime

from parallel_fixedram.boot.overlays import backing_chain
from parallel_fixedram.core.disks import Disk, DiskImage
from parallel_fixedram.core.errors import ContentsDiffer, NoFileError, RequestError
from parallel_fixedram.core.units import format_exact_size
from parallel_fixedram.host.files.image_facts import image_now

_SINCE = "the guest's memory would not fit it: bring back the image as it was"


def refuse_written(disks: Sequence[Disk]) -> None:
    """Refuse images that are not as they were when they were recorded; a copy with the same times counts as the same.

    Raises:
        ContentsDiffer: one was written since; says which, and by what that shows.
        RequestError: one is missing, or is no image any more.
        HostError: one cannot be read.
    """
    for disk in disks:
        for image in disk.images:
            name = f"image {image.path!r} of disk {disk.device!r}"
            try:
                now = image_now(image.path, image.format)
            except NoFileError as error:
                raise NoFileError(f"{name} is not there any more", errno=error.errno, hint=_SINCE) from error
            if what := _difference(image, now):
                raise ContentsDiffer(f"{name} was written since the guest was saved: {what}", hint=_SINCE)


def _difference(then: DiskImage, now: DiskImage) -> str:
    """What is not the same any more, the plainest first; empty if nothing."""
    if now.bytes != then.bytes:
        return f"it has {format_exact_size(now.bytes)}, and had {format_exact_size(then.bytes)}"
    if now.modified_ns != then.modified_ns:
        return f"last at {_moment(now.modified_ns)}, and not at {_moment(then.modified_ns)}"
    return "" if now.digest == then.digest else "its first or last MiB is not what it was"


def _moment(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"


def refuse_another_chain(disk: Disk, qemu_img: str) -> None:
    """Refuse a disk whose images' headers name other backing files: QEMU goes by the headers.

    Raises:
        RequestError: it is such a disk, as where the command line says what is behind an image.
        HostError: qemu-img does not tell.
    """
    top, *behind = disk.images
    if top.format == "raw" and not behind:
        return
    found = backing_chain(top.path, top.format, qemu_img)[1:]
    if len(found) != len(behind) or not all(
        is_same_file(path, image.path) and format == image.format
        for (path, format), image in zip(found, behind, strict=True)
    ):
        had = _listed([(image.path, image.format) for image in behind])
        raise RequestError(
            f"image {top.path!r} of disk {disk.device!r} has by its header {_listed(found)} behind it, "
            f"and {had} when the guest was saved",
            hint="qemu-img rebase -u writes it into the header, before the guest is saved",
        )


def is_same_file(path: str, other: str) -> bool:
    """Whether two names lead to the same file, or block device, that is there."""
    try:
        one, two = os.stat(path), os.stat(other)
    except OSError:
        return False
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(two.st_mode):
        return one.st_rdev == two.st_rdev
    return os.path.samestat(one, two)


def _listed(images: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{path!r} ({format})" for path, format in images) or "nothing"
