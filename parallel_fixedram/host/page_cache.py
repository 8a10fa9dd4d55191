"""What of a file is in the page cache."""

from __future__ import annotations

import errno
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
