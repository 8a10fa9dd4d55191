"""What can be seen of a disk's image file from outside: by this it is known again, and that it was written since.

Images are large, so only both ends of one are read. What is written in between shows in the time of the last write; a
block device does not tell that, and there it does not show.
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
        path: of a regular file or a block device; it is read only, and nothing is waited for on a FIFO.
        format: QEMU's block driver for its contents, which are not looked at.

    Raises:
        RequestError: there is none, or it is neither a file nor a block device.
        HostError: it cannot be opened or read.
    """
    path = os.path.abspath(path)
    fd = open_readable(path, or_device=True)
    try:
        channel = FileChannel(fd, path)
        status, size = channel.stat(), channel.size()
        return DiskImage(
            path=path,
            format=format,
            bytes=size,
            modified_ns=0 if stat.S_ISBLK(status.st_mode) else status.st_mtime_ns,
            digest=_digest_of_ends(channel, size),
        )
    finally:
        linux.close(fd)


def _digest_of_ends(channel: FileChannel, size: int) -> str:
    """XXH3-128 of the first and the last ENDS bytes; of a shorter file, of every byte once."""
    digest = xxhash.xxh3_128(channel.bytes_at(0, min(ENDS, size)))
    last = max(ENDS, size - ENDS)
    digest.update(channel.bytes_at(last, max(0, size - last)))
    return digest.hexdigest()
