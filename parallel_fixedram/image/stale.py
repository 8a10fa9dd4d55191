"""Stale pages: zero by the bitmap, but their places in the file hold other bytes.

QEMU leaves them after a live save, and its loader honours the bitmap. Files of ours have none, until a tool that skips
zeros writes a new file over an older one. A guest whose RAM is mapped from the page arrays would see them.

A hole holds nothing, so only places that are allocated are read. Zeros may be there, and do no harm: reserved space,
gaps that were bridged, copies by tools and on file systems that know no holes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap, runs_of_ones
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.window import WINDOW_PAGES, nonzero_pages, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.trailer import DIGEST_BYTES
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, huge_memory, open_writable
from parallel_fixedram.image.compare import run_check
from parallel_fixedram.image.image import Image

_TABLE_PAGES = 1 << 18
POOL_PAGES = 4096
"""Pages to be read from which on workers are worth their start."""


def absent_but_stored(image: Image, saved: SavedBlock) -> PageBitmap:
    """Pages that are zero by the bitmap, and whose place is no hole."""
    stored = image.slot_data(saved)
    stored.words &= np.bitwise_not(image.bitmap(saved.block.idstr).words)
    return stored


class StaleJob:
    """Finds absent pages of a shard whose places do not read as zeros; only places that are not holes are read."""

    def __init__(self, image: Image, blocks: Sequence[SavedBlock]) -> None:
        self._image = image
        self._blocks = blocks
        self.work = [absent_but_stored(image, saved) for saved in blocks]

    def open(self) -> None:
        """Allocate the read buffer (Job.open)."""
        self._buffer = huge_memory(WINDOW_PAGES * self._image.file.page_size)

    def run(self, shard: Shard) -> Tally:
        """Check one shard (Job.run); pages that are there are not read along, of which there may be far more."""
        tally, saved = Tally(), self._blocks[shard.block]
        size = saved.block.page_size
        for window in windows(self.work[shard.block], shard):
            count = 0
            for start, pages in runs_of_ones(window.bits).tolist():
                into = self._buffer[count * size : (count + pages) * size]
                self._image.channel.read(saved.page_offset(window.first + start), into)
                count += pages
            tally.bytes += count * size
            read = np.frombuffer(self._buffer, np.uint64, count * size // 8).reshape(count, -1)
            stale = np.zeros(len(window.bits), np.uint8)
            stale[window.bits != 0] = nonzero_pages(read)
            tally.found_bad(shard.block, window.first, stale)
        return tally


def refuse_stale_pages(
    image: Image, blocks: Sequence[SavedBlock], *, channels: int, observer: Observer = SILENT
) -> None:
    """Refuse a file in which a place that is zero by the bitmap holds other bytes.

    Args:
        image: the open file.
        blocks: those to look at.
        channels: number of workers, should there be much to read.
        observer: hears how far it is.

    Raises:
        RequestError: it has stale pages; names the first one.
        HostError: the file cannot be read.
    """
    job = StaleJob(image, blocks)
    if not (count := sum(work.count() for work in job.work)):
        return
    with WorkerPool([job], channels if count >= POOL_PAGES else 1) as pool:
        size = image.file.page_size
        found = run_check(pool, 0, job.work, channels=channels, phase="zero pages", page_size=size, observer=observer)
    if not found.bad_pages:
        return
    first = found.findings[0]
    saved = blocks[first.block]
    how = "a tool that skips zeros has written it over an older file" if image.file.trailer else "QEMU saved it live"
    raise RequestError(
        f"{image.path!r} has stale bytes where {found.bad_pages} pages are zero, first block {saved.block.idstr!r} "
        f"page {first.first} at {saved.page_offset(first.first):#x}: {how}",
        hint="clone --punch makes holes of them, in place; what the file says stays the same, and verify checks that",
    )


def punch_stale_pages(image: Image) -> int:
    """Make holes of all places that are zero by the bitmap, in place; returns how many pages were no holes before.

    What the file says does not change. A page that is zero has no digest either, so old ones of such pages go, too.

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
            _punch_digests(image, saved, channel)
        channel.sync()
    finally:
        linux.close(fd)
    return punched


def _punch_digests(image: Image, saved: SavedBlock, channel: FileChannel) -> None:
    """Make the digests zero that a file has of pages that are zero by the bitmap."""
    if image.file.trailer is None:
        return
    table, bitmap = image.file.trailer.tables[image.file.blocks.index(saved)], image.bitmap(saved.block.idstr)
    for first in range(0, saved.block.pages, _TABLE_PAGES):
        bits = bitmap.page_bits(first, min(_TABLE_PAGES, saved.block.pages - first))
        place = table + first * DIGEST_BYTES
        digests = np.frombuffer(channel.bytes_at(place, len(bits) * DIGEST_BYTES), np.uint64)
        for start, count in runs_of_ones(((bits == 0) & (digests != 0)).view(np.uint8)).tolist():
            channel.punch(place + start * DIGEST_BYTES, count * DIGEST_BYTES)


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
