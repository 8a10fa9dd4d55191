"""What changes guest memory unseen by a userfaultfd of QEMU's process: a guest with any of it cannot have a snapshot.

::

    a device that shares its memory             others write to it through page tables of their own
    a disk driver that has RAM pinned           the device, or another process, writes directly to the pages
    a balloon on huge pages                     QEMU discards them by a hole in their file, without madvise
    merging (KSM)                               a merged page loses its protection

QEMU reports the first three, the kernel the last one. Devices that are always refused (VFIO, vhost-user, vDPA) are in
``discovery.py``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host.memory import ksm
from parallel_fixedram.machines.qemu.discovery import Makeup
from parallel_fixedram.machines.qemu.monitor import Monitor

_BALLOONS = ("virtio-balloon", "hv-balloon")
_SHARING = "ivshmem"

_PINNING = frozenset(
    ("nvme", "nvme-io_uring", "io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa")
)
"""Block drivers that register all RAM once, and then write to it without QEMU (QEMU block/nvme.c, block/blkio.c)."""


def refuse_unwatched(monitor: Monitor, found: Makeup) -> None:
    """Refuse a guest with a device or disk that changes its memory unseen.

    Raises:
        MachineError: it has one; the message names it.
    """
    for _, reason in unwatched(monitor, found):
        raise MachineError(reason)


def unwatched(monitor: Monitor, found: Makeup) -> Iterator[tuple[str, str]]:
    """Name of each device or disk that changes memory unseen, and a sentence that says how.

    Raises:
        MachineError: QEMU does not list its disks.
    """
    huge = any(block.host_page_size > mmap.PAGESIZE for block in found.blocks)
    for name, kind in found.devices:
        if kind.startswith(_SHARING):
            yield name, f"device {name!r} is an {kind}: whoever shares its memory writes to it unseen"
        if huge and kind.startswith(_BALLOONS):
            yield name, f"device {name!r} is a {kind}, which discards parts of huge pages"
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    for node in nodes if isinstance(nodes, list) else [nodes]:
        if not isinstance(node, dict):
            raise monitor.malformed("query-named-block-nodes", nodes)
        if (driver := node.get("drv")) in _PINNING:
            name = str(node.get("node-name"))
            yield name, f"disk {name!r} is accessed by {driver}, which writes to guest memory unseen"


class Merging:
    """Finds out whether pages of a QEMU may have been merged since this object was made.

    Args:
        pid: its process.
        found: what it is made of.
    """

    def __init__(self, pid: int, found: Makeup) -> None:
        self._pid = pid
        self._found = found
        self._scans = ksm.scans()

    def refuse(self) -> None:
        """Refuse memory that may be merged, if the host merges pages or has done so meanwhile.

        Raises:
            HostError: there is such memory.
            MachineError: the process has ended.
        """
        if not ksm.is_merging() and ksm.scans() == self._scans:
            return
        for block in self._found.blocks:
            if ksm.is_mergeable(self._pid, block.address, block.used_length):
                raise HostError(
                    "this host merges pages of guests (KSM), which removes their write protection",
                    hint="start QEMU with -machine mem-merge=off, or stop KSM: echo 0 > /sys/kernel/mm/ksm/run",
                )
