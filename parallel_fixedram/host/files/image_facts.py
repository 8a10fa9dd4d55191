"""Facts about a disk's image file by which it is recognised later, and by which one sees that it was written since.

Images are large, so only both ends are read. A write in between shows in the time of the last write. A block device has
no such time, so there a write in between goes unnoticed.
"""

from __future__ import annotations

import os
import stat

import xxhash

from parallel_fixedram.core.disks import ENDS, DiskImage
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, open_readable


def image_now(path: str, format: str) -> DiskImage:
    """An image as it is now.

    Args:
        path: a regular file or a block device; it is only read, and a FIFO does not block.
        format: QEMU's block driver for its contents, which are not examined.

    Raises:
        RequestError: it does not exist, or is neither a regular file nor a block device.
        HostError: it cannot be opened or read.
    """
    path = os.path.abspath(path)
    fd = open_readable(path, or_device=True)
    with linux.closing(fd):
        channel = FileChannel(fd, path)
        status, size = channel.stat(), channel.size()
        return DiskImage(
            path=path,
            format=format,
            bytes=size,
            modified_ns=0 if stat.S_ISBLK(status.st_mode) else status.st_mtime_ns,
            digest=_digest_of_ends(channel, size),
        )


def _digest_of_ends(channel: FileChannel, size: int) -> str:
    """XXH3-128 of the first and the last ENDS bytes; where these overlap, no byte counts twice."""
    digest = xxhash.xxh3_128(channel.bytes_at(0, min(ENDS, size)))
    last = max(ENDS, size - ENDS)
    digest.update(channel.bytes_at(last, max(0, size - last)))
    return digest.hexdigest()
