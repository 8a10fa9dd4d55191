"""Compare the images that a file records with what is there now: a guest's memory fits only their old contents."""

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
    """Refuse images that have changed since they were recorded; a copy with the same times counts as unchanged.

    Raises:
        ContentsDiffer: one was written to; the message says which, and how that shows.
        RequestError: one is missing, or is no longer a file or block device.
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
                raise ContentsDiffer(f"{name} was written to since the guest was saved: {what}", hint=_SINCE)


def _difference(then: DiskImage, now: DiskImage) -> str:
    """What has changed, the most obvious change first; empty if nothing has."""
    if now.bytes != then.bytes:
        return f"it has {format_exact_size(now.bytes)}, and had {format_exact_size(then.bytes)}"
    if now.modified_ns != then.modified_ns:
        return f"last at {_moment(now.modified_ns)}, and not at {_moment(then.modified_ns)}"
    return "" if now.digest == then.digest else "its first or last MiB has changed"


def _moment(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"


def refuse_another_chain(disk: Disk, qemu_img: str) -> None:
    """Refuse a disk whose image headers name other backing files than recorded, since QEMU goes by the headers.

    Raises:
        RequestError: they do, for example because a command line overrides them.
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
            f"image {top.path!r} of disk {disk.device!r} has the backing file {_listed(found)} by its header, "
            f"but had {had} when the guest was saved",
            hint="before a guest is saved, qemu-img rebase -u writes the backing file into the header",
        )


def is_same_file(path: str, other: str) -> bool:
    """Whether two paths lead to the same existing file or block device."""
    try:
        one, two = os.stat(path), os.stat(other)
    except OSError:
        return False
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(two.st_mode):
        return one.st_rdev == two.st_rdev
    return os.path.samestat(one, two)


def _listed(images: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{path!r} ({format})" for path, format in images) or "nothing"
