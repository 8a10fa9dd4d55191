"""What of a file is in the page cache."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence


def is_cold(fd: int, offsets: Sequence[int]) -> bool:
    """Whether most of the bytes at ``offsets`` would have to come from the device.

    Asked with ``preadv2(RWF_NOWAIT)``, which fails where it would have to wait; memory file systems, and those that
    cannot tell, count as warm.
    """
    cold = 0
    for offset in offsets:
        try:
            os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return False
            cold += 1
    return 2 * cold > len(offsets)


def takes_direct_io(path: str) -> bool:
    """Whether the file can be read past the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def dirty_room() -> int:
    """How many bytes can be written into the page cache before the kernel makes writers wait for the device.

    That begins halfway between the background and the hard limit (mm/page-writeback.c, dirty_freerun_ceiling).
    Where the kernel does not tell: none.
    """
    pages = dict.fromkeys(("nr_dirty_threshold", "nr_dirty_background_threshold", "nr_dirty", "nr_writeback"), 0)
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name in pages:
                    pages[name] = int(value)
    except OSError:
        return 0
    ceiling = (pages["nr_dirty_threshold"] + pages["nr_dirty_background_threshold"]) // 2
    return max(ceiling - pages["nr_dirty"] - pages["nr_writeback"], 0) * mmap.PAGESIZE
