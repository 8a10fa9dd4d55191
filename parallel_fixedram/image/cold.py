"""Files whose pages have to come from the device: how to recognise them, and read them bypassing the page cache.

Cached pages come at the speed of memory. Others would be copied once more on their way through the page cache, and push
out what others have cached.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host import linux
from parallel_fixedram.host.files import page_cache
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.image.image import Image

CACHE_SAMPLES = 64
"""Pages of a block that are examined to tell whether it is in the page cache."""


def is_cold(image: Image, blocks: Sequence[SavedBlock]) -> bool:
    """Whether most pages of these blocks would have to come from the device."""
    offsets: list[int] = []
    for saved in blocks:
        bitmap = image.bitmap(saved.block.idstr)
        words = np.flatnonzero(bitmap.words)
        # spread evenly over the words that have pages, one page of each
        chosen = words[np.linspace(0, len(words) - 1, min(CACHE_SAMPLES, len(words)), dtype=int)]
        for word in chosen.tolist():
            first = word * WORD_PAGES
            offsets.append(saved.page_offset(first + int(bitmap.page_bits(first, WORD_PAGES).argmax())))
    return page_cache.is_cold(image.channel.fd, offsets)


@contextlib.contextmanager
def direct_channel(image: Image, blocks: Sequence[SavedBlock]) -> Iterator[FileChannel | None]:
    """A channel that reads these blocks with O_DIRECT; None if the file system refuses that, or a block is not
    aligned."""
    fd = _open_direct(image.channel.fd, blocks)
    try:
        yield None if fd is None else FileChannel(fd, image.path)
    finally:
        if fd is not None:
            linux.close(fd)


def _open_direct(buffered: int, blocks: Sequence[SavedBlock]) -> int | None:
    if any((saved.header.pages_offset | saved.block.page_size) % mmap.PAGESIZE for saved in blocks):
        return None
    fd = -1
    try:
        # not by its path: another file may have that name by now
        fd = os.open(f"/proc/self/fd/{buffered}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        # some file systems accept O_DIRECT at open and refuse it at read
        os.preadv(fd, [anonymous_memory(mmap.PAGESIZE)], blocks[0].header.pages_offset)
    except OSError:
        if fd >= 0:
            linux.close(fd)
        return None
    return fd
