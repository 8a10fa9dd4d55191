"""Stale pages: zero by the bitmap, but their places in the file hold other bytes.

QEMU leaves them after a live save, and its loader honours the bitmap. A guest whose RAM is mapped from the page arrays
would see them. Files of ours have none.
"""

from __future__ import annotations

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.mapped_ram import SavedBlock
from parallel_fixedram.core.plan import plan_shards
from parallel_fixedram.engine.image import Image
from parallel_fixedram.engine.messages import Tally
from parallel_fixedram.engine.window import WindowReader, nonzero_pages, windows
from parallel_fixedram.host import linux
from parallel_fixedram.host.channel import FileChannel, open_writable


def absent_but_stored(image: Image, saved: SavedBlock) -> PageBitmap:
    """Pages that are zero by the bitmap, and whose place is no hole."""
    stored = image.slot_data(saved)
    stored.words &= np.bitwise_not(image.bitmap(saved.block.idstr).words)
    return stored


def has_stale_pages(image: Image, saved: SavedBlock) -> bool:
    """Whether a block has any; reads what is no hole."""
    candidates = absent_but_stored(image, saved)
    reader = WindowReader(image.channel, saved.block.page_size)
    return any(
        nonzero_pages(reader.read(saved, window, Tally())).any()
        for shard in plan_shards([candidates], workers=1)
        for window in windows(candidates, shard)
    )


def punch_stale_pages(image: Image) -> int:
    """Make holes of all places that are zero by the bitmap, in place; returns how many pages were no holes before.

    What the file says does not change.

    Raises:
        HostError: the file cannot be written.
    """
    fd = reopen_writable(image)
    try:
        channel, punched = FileChannel(fd, image.path), 0
        for saved in image.blocks:
            for pages in absent_but_stored(image, saved).ranges():
                channel.punch(saved.page_offset(pages.first), pages.count * saved.block.page_size)
                punched += pages.count
        channel.sync()
    finally:
        linux.close(fd)
    return punched


def reopen_writable(image: Image) -> int:
    """A descriptor of the very file that is open, for writing.

    Raises:
        HostError: it may not be written.
        RequestError: another file has its name by now.
    """
    try:
        fd = open_writable(image.path, or_device=True)
    except HostError as error:  # it is open already: what is missing is the right to write
        raise HostError(f"cannot write to {image.path!r}", errno=error.errno) from error
    try:
        found, expected = FileChannel(fd, image.path).stat(), image.channel.stat()
        if (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino):
            raise RequestError(f"{image.path!r} was replaced by another file")
    except BaseException:
        linux.close(fd)
        raise
    return fd
