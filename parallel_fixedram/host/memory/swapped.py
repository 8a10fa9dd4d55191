"""Private memory of another process that is in swap: brought in to be read, and paged out again afterwards.

Memory that is brought in is charged to its owner. If a process is limited to less memory than it has, and the rest is
in swap, reading all of it would get the process killed. So we read in steps, and after each step page out what was in
swap before. This writes nothing: a page that came from swap and was only read still has its place there. It takes
CAP_SYS_NICE; without that right we refuse to read more than there is room for.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.units import format_size
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.process_maps import refusal

logger = logging.getLogger(__name__)

STEP_BYTES = 1 << 20
"""How much is brought in at a time: little compared with any limit that a process can live with."""

_MOST_RANGES = 512
"""Ranges per call; UIO_MAXIOV is twice that."""

_SWAPPED_BIT = np.uint64(62)
"""The bit in an entry of /proc/PID/pagemap (Linux: Documentation/admin-guide/mm/pagemap.rst)."""

_Ranges = NDArray[np.uint64]


class SwappedPages:
    """Which pages of a process are in swap. To be used in one process of ours only, and closed.

    Args:
        pid: the process.

    Raises:
        MachineError: the process has ended.
        HostError: we lack the right to look.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._regions = np.empty((_MOST_RANGES, 3), np.uint64)
        self._may_advise = True
        self._pidfd = self._pagemap = -1
        try:
            self._pidfd = os.pidfd_open(pid)
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise refusal(pid, error, f"cannot read the page tables of process {pid}") from error

    def within(self, address: int, length: int) -> _Ranges:
        """The ranges of a piece of memory that are in swap; at most the first 512.

        Args:
            address: a multiple of the host's page size.
            length: bytes, also such a multiple.

        Returns:
            First address and bytes of each, shape (ranges, 2), ascending.
        """
        try:
            try:
                found = self._scanned(address, length)
            except OSError as error:
                if error.errno != errno.ENOTTY:
                    raise
                found = self._listed(address, length)
        except OSError as error:
            raise refusal(self._pid, error, f"cannot read the page tables of process {self._pid}") from error
        return found

    def _scanned(self, address: int, length: int) -> _Ranges:
        got = linux.pagemap_scan(self._pagemap, address, address + length, self._regions, linux.PAGE_IS_SWAPPED)
        found = self._regions[:got, :2].copy()
        found[:, 1] -= found[:, 0]
        return found

    def _listed(self, address: int, length: int) -> _Ranges:
        data = os.pread(self._pagemap, length // mmap.PAGESIZE * 8, address // mmap.PAGESIZE * 8)
        pages = np.flatnonzero(np.frombuffer(data, np.uint64) >> _SWAPPED_BIT & np.uint64(1))
        starts = (address + pages[:_MOST_RANGES] * mmap.PAGESIZE).astype(np.uint64)
        return np.stack((starts, np.full_like(starts, mmap.PAGESIZE)), axis=1)

    def bring_in(self, ranges: _Ranges) -> None:
        """Begin to bring these in all at once; page by page, as they are read, would take many times longer."""
        self._advise(ranges, linux.MADV_WILLNEED)

    def give_back(self, ranges: _Ranges) -> None:
        """Page these out again."""
        self._advise(ranges, linux.MADV_PAGEOUT)

    def _advise(self, ranges: _Ranges, advice: int) -> None:
        if self._may_advise and len(ranges):
            try:
                linux.process_madvise(self._pidfd, ranges, advice)
            except OSError as error:  # usually a missing right; that there is room was checked at the start
                logger.debug("process %d: %s", self._pid, error)
                self._may_advise = False

    def close(self) -> None:
        """Close its descriptors; may be called more than once."""
        for fd in (self._pidfd, self._pagemap):
            if fd >= 0:
                linux.close(fd)
        self._pidfd = self._pagemap = -1


def check_room(pid: int, swapped: int, room: int | None) -> None:
    """Refuse to read the memory of a process that would not survive it.

    Args:
        pid: the process.
        swapped: how much of it is in swap, bytes.
        room: how much its control groups leave it, bytes; None if they do not limit it.

    Raises:
        MachineError: it has ended.
        HostError: more of it is in swap than there is room for, and we may not page anything out.
    """
    if room is None or swapped <= room:
        return
    try:
        pidfd = os.pidfd_open(pid)
        with linux.closing(pidfd):
            linux.process_madvise(pidfd, np.empty((0, 2), np.uint64), linux.MADV_PAGEOUT)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise refusal(pid, error, f"cannot page out memory of process {pid}") from error
        what = (
            f"process {pid} has {format_size(swapped)} in swap, and its control group has room for {format_size(room)}"
        )
        hint = "reading would bring it in and get the process killed; paging it out again takes CAP_SYS_NICE"
        raise HostError.from_os(what, error, hint=hint) from error


def has_swap() -> bool:
    """Whether this host has any swap; True if it does not tell."""
    try:
        with open("/proc/swaps", encoding="utf-8", errors="replace") as file:
            return len(file.readlines()) > 1
    except OSError:
        return True
