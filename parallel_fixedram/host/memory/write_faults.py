"""The page faults of another process's writes to shared memory, taken for it.

::

    us                                               the kernel
     | PAGEMAP_SCAN --------------------------------->|  which pages of shared memory the process has in its tables
     | process_vm_writev, from memory that nobody     |  makes these writable, as for a write
     | can read ------------------------------------->|  and copies nothing, because the source cannot be read (EFAULT)

It takes a tenth of the time that the process would take, and changes no byte. No page comes into memory for it. Fact:
Linux, mm/process_vm_access.c, which pins up to 1024 pages for writing before it looks at the source.
"""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np

from parallel_fixedram.host import linux

_PAGES = 1024
"""What one call makes writable. They have fewer regions than PAGEMAP_SCAN finds at a time."""


def take_write_faults(pid: int, address: int, length: int) -> None:
    """Make shared memory of a process writable in its page tables; changes nothing else, and never fails.

    A page that a userfaultfd protects makes us wait as it would make the process.

    Args:
        pid: the process.
        address: of the first page, a multiple of the host's page size.
        length: bytes, whole pages.
    """
    regions, piece = np.empty((_PAGES, 3), np.uint64), _PAGES * mmap.PAGESIZE
    with contextlib.suppress(OSError):  # an older kernel, no right, the process has ended: it takes its faults itself
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in range(address, address + length, piece):
                end = min(start + piece, address + length)
                found = linux.pagemap_scan(fd, start, end, regions, linux.PAGE_IS_FILE)
                for first, last in regions[:found, :2].tolist():
                    linux.process_vm_write_nothing(pid, first, last - first)
        finally:
            linux.close(fd)
