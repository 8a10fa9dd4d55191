"""Disks of a saved guest: the image files whose contents belong to the instant that a file shows.

::

    disk of the guest --> images[0] --> images[1] --> ...     top first; each but the last has the next one behind it
                          qcow2         raw                   (backing file)

Whoever boots the file gives each guest an overlay of its own on ``images[0]``: none of these files may be written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from parallel_fixedram.core.plain import from_plain
from parallel_fixedram.core.units import MAX_SIZE

ENDS = 1 << 20
"""An image's digest covers its first and its last so many bytes: a qcow2 header and its first tables are among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskImage:
    """A file that a disk's contents are in, as it was at the instant.

    Attributes:
        path: absolute.
        format: QEMU's block driver: ``qcow2`` or ``raw``.
        bytes: length of the file; of a block device, its size.
        modified_ns: when it was last written, nanoseconds since the epoch; 0 for a block device, which does not tell.
        digest: XXH3-128 of its first and last ``ENDS`` bytes, hexadecimal.
    """

    path: str
    format: str
    bytes: int = 0
    modified_ns: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk of the guest.

    Attributes:
        device: what people call it: the id of its device, else that of its drive, else its path among QEMU's objects.
        node: node-name of its image in QEMU's block graph.
        size: bytes that the guest sees.
        images: top first, then what is behind it.
    """

    device: str
    node: str
    size: int
    images: tuple[DiskImage, ...]


def pack_disks(disks: Sequence[Disk]) -> bytes:
    """As JSON, for a file's trailer."""
    return json.dumps([asdict(each) for each in disks]).encode()


def unpack_disks(data: bytes) -> tuple[Disk, ...]:
    """What ``pack_disks`` made.

    Raises:
        ValueError: it is not that.
    """
    disks = from_plain(tuple[Disk, ...], json.loads(data))
    for disk in disks:
        _check(disk)
    return disks


def _check(disk: Disk) -> None:
    if not disk.images:
        raise ValueError("a disk without an image")
    numbers = [disk.size]
    for image in disk.images:
        numbers += image.bytes, image.modified_ns
        if b"\0" in image.path.encode(errors="surrogateescape"):  # which fails for what is no name either
            raise ValueError("a path that no file can have")
    if not all(0 <= number <= MAX_SIZE for number in numbers):
        raise ValueError("a size, or a time, that no file can have")
