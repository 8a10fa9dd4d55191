"""Which pages of another process have memory of their own, read from its page tables without touching anything."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, PageBitmap
from parallel_fixedram.host import linux

_CHUNK_PAGES = 1 << 18
_REGIONS = 1 << 15
_PRESENT = np.uint64(63)
"""How far to shift an entry of /proc/PID/pagemap so that only bit 63, "present", is left."""
_PRESENT_OR_SWAPPED = np.uint64(62)
"""The same for bits 62 and 63, "swapped" and "present" (Linux: Documentation/admin-guide/mm/pagemap.rst)."""


def occupied(pid: int, address: int, pages: int, *, swapped: bool = True) -> PageBitmap:
    """The pages that are present or swapped, without zero pages if the kernel can tell them apart (Linux 6.7).

    The zero page is what private memory is mapped to if it was read but never written. Older kernels report it as well.

    Args:
        pid: the process.
        address: of the first page, a multiple of the host's page size.
        pages: how many, of the host's page size.
        swapped: False leaves out pages that look swapped, as those do that were protected before they were ever
            touched.

    Raises:
        OSError: the page tables cannot be read, perhaps because the process has ended: see ``process_maps.refusal``.
    """
    found = PageBitmap(pages)
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    with linux.closing(fd):
        ask = _scanned
        for first in range(0, pages, _CHUNK_PAGES):
            start, count = address + first * mmap.PAGESIZE, min(_CHUNK_PAGES, pages - first)
            try:
                bits = ask(fd, start, count, swapped)
            except OSError as error:
                if ask is _listed or error.errno != errno.ENOTTY:
                    raise
                ask = _listed
                bits = ask(fd, start, count, swapped)
            found.put_bits(first // WORD_PAGES, bits)
    linux.may_read_process(pid)  # a process that ended meanwhile has empty page tables, not an error
    return found


def _scanned(fd: int, address: int, count: int, swapped: bool) -> NDArray[np.uint8]:
    """0 or 1 for each page, by the ioctl, which skips unmapped memory quickly.

    The borders of regions are counted as +1 and -1; their running sum is 1 inside a region.
    """
    turns = np.zeros(count + 1, np.int8)
    regions = np.empty((_REGIONS, 3), np.uint64)
    position, end = address, address + count * mmap.PAGESIZE
    kinds = linux.PAGE_IS_PRESENT | linux.PAGE_IS_SWAPPED if swapped else linux.PAGE_IS_PRESENT
    while position < end:
        got = linux.pagemap_scan(fd, position, end, regions, kinds)
        borders = (regions[:got, :2].astype(np.int64) - address) // mmap.PAGESIZE
        turns[borders[:, 0]] += 1  # regions are disjoint: no index is in one of the columns twice
        turns[borders[:, 1]] -= 1
        # there was no room for more: go on after the last one
        position = int(regions[-1, 1]) if got == len(regions) else end
    return np.cumsum(turns[:-1], dtype=np.int8).view(np.uint8)


def _listed(fd: int, address: int, count: int, swapped: bool) -> NDArray[np.uint8]:
    """0 or 1 for each page, by reading an entry for each."""
    entries = np.empty(count, np.uint64)
    into, offset = entries.data.cast("B"), address // mmap.PAGESIZE * entries.itemsize
    while into:
        got = os.preadv(fd, [into], offset)
        if got == 0:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        into, offset = into[got:], offset + got
    entries >>= _PRESENT_OR_SWAPPED if swapped else _PRESENT
    return np.not_equal(entries, 0).view(np.uint8)
