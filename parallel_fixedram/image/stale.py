"""Stale pages: pages that are zero by the bitmap, but whose places in the file contain other bytes.

QEMU leaves them in live saves, where its loader honours the bitmap. Our files have none, unless a tool that skips zeros
has written one over an older file. A guest whose RAM is mapped from the page arrays would see them.

Holes cannot have stale bytes, so only allocated places are read. These may contain zeros, which do no harm: reserved
space, bridged gaps, copies made by tools or on file systems without holes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap, runs_of_ones
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard
from parallel_fixedram.engine.pages.window import nonzero_pages, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.trailer import DIGEST_BYTES
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, open_writable
from parallel_fixedram.host.memory.anonymous import huge_memory
from parallel_fixedram.image.compare import run_check
from parallel_fixedram.image.image import Image

_TABLE_PAGES = 1 << 18
POOL_PAGES = 4096
"""With this many pages to read, it is worth starting several workers."""


def absent_but_stored(image: Image, saved: SavedBlock) -> PageBitmap:
    """Pages that are zero by the bitmap, but whose place is not a hole."""
    stored = image.slot_data(saved)
    stored.words &= np.bitwise_not(image.bitmap(saved.block.idstr).words)
    return stored


class StaleJob:
    """Finds absent pages of a shard whose places do not read as zeros; holes are not read."""

    def __init__(self, image: Image, blocks: Sequence[SavedBlock]) -> None:
        self._image = image
        self._blocks = blocks
        self.work = [absent_but_stored(image, saved) for saved in blocks]

    def open(self) -> None:
        """Allocate the read buffer (Job.open)."""
        self._buffer = huge_memory(WINDOW_PAGES * self._image.file.page_size)

    def run(self, shard: Shard) -> Tally:
        """Check one shard (Job.run). Present pages in between are not read, as there may be far more of them."""
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
    """Refuse a file with stale pages.

    Args:
        image: the open file.
        blocks: those to check.
        channels: number of workers if there is much to read.
        observer: told about progress.

    Raises:
        RequestError: it has stale pages; the message names the first one.
        HostError: the file cannot be read.
    """
    job = StaleJob(image, blocks)
    if not (count := sum(work.count() for work in job.work)):
        return
    with WorkerPool([job], channels if count >= POOL_PAGES else 1) as pool:
        size = image.file.page_size
        found = run_check(pool, 0, job.work, phase="zero pages", page_size=size, observer=observer)
    if not found.bad_pages:
        return
    first = found.findings[0]
    saved = blocks[first.block]
    how = "a tool that skips zeros has written it over an older file" if image.file.trailer else "QEMU saved it live"
    raise RequestError(
        f"{image.path!r} has stale bytes where {found.bad_pages} pages are zero, first block {saved.block.idstr!r} "
        f"page {first.first} at {saved.page_offset(first.first):#x}: {how}",
        hint="clone --punch turns them into holes, in place; the saved guest stays the same, and verify can check that",
    )


def punch_stale_pages(image: Image) -> int:
    """Turn all places that are zero by the bitmap into holes, in place; returns how many pages were not holes before.

    The saved guest does not change. Zero pages have no digests, so any stale digests of these pages are removed as
    well.

    Raises:
        HostError: the file cannot be written.
    """
    fd = reopen_writable(image)
    with linux.closing(fd):
        channel, punched = FileChannel(fd, image.path), 0
        for saved in image.blocks:
            for pages in absent_but_stored(image, saved).ranges():
                channel.punch(saved.page_offset(pages.first), pages.count * saved.block.page_size)
                punched += pages.count
            _punch_digests(image, saved, channel)
        channel.sync()
    return punched


def _punch_digests(image: Image, saved: SavedBlock, channel: FileChannel) -> None:
    """Remove digests of pages that are zero by the bitmap."""
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
    """A descriptor for writing of the very file that is open.

    Raises:
        HostError: we may not write to it.
        RequestError: another file has its name by now.
    """
    try:
        fd = open_writable(image.path, or_device=True)
    except HostError as error:  # it is open for reading, so only the right to write is missing
        raise HostError(f"cannot write to {image.path!r}", errno=error.errno) from error
    try:
        found, expected = FileChannel(fd, image.path).stat(), image.channel.stat()
        if (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino):
            raise RequestError(f"{image.path!r} was replaced by another file")
    except BaseException:
        linux.close(fd)
        raise
    return fd
