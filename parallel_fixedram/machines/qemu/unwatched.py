"""What changes a guest's memory so that a userfaultfd of QEMU's process is not told: such a guest gets no snapshot.

::

    a device that others share memory with      they write it by page tables of their own
    a disk driver that has RAM pinned           the device, or another process, writes the pages themselves
    a balloon on huge pages                     QEMU discards them by a hole in their file, without madvise
    merging (KSM)                               the page that takes a page's place is not protected

The first three are QEMU's own words of what it is made of; the last one the kernel's. Devices that are refused in every
case (VFIO, vhost-user, vDPA) are in ``discovery.py``.
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
"""Block drivers that are told of all RAM once, and write there without QEMU (QEMU block/nvme.c, block/blkio.c)."""


def refuse_unwatched(monitor: Monitor, found: Makeup) -> None:
    """Refuse a guest whose memory something that it is made of changes unseen.

    Raises:
        MachineError: names it.
    """
    for _, reason in unwatched(monitor, found):
        raise MachineError(reason)


def unwatched(monitor: Monitor, found: Makeup) -> Iterator[tuple[str, str]]:
    """Name of each device or disk that changes memory unseen, and a sentence that says how.

    Raises:
        MachineError: QEMU does not say what disks it has.
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
        if (driver := str(node.get("drv"))) in _PINNING:
            name = str(node.get("node-name"))
            yield name, f"disk {name!r} is behind {driver}, which writes guest memory unseen"


class Merging:
    """Whether pages of a QEMU may have been merged since this was made.

    Args:
        pid: its process.
        found: what it is made of.
    """

    def __init__(self, pid: int, found: Makeup) -> None:
        self._pid = pid
        self._found = found
        self._scans = ksm.scans()

    def refuse(self) -> None:
        """Refuse what may be merged on a host that merges, or has.

        Raises:
            HostError: it is so.
            MachineError: the process has ended.
        """
        if not ksm.is_merging() and ksm.scans() == self._scans:
            return
        for block in self._found.blocks:
            if ksm.is_mergeable(self._pid, block.address, block.used_length):
                raise HostError(
                    "this host merges pages of guests (KSM), which removes their write protection",
                    hint="start QEMU with -machine mem-merge=off, or stop it: echo 0 > /sys/kernel/mm/ksm/run",
                )
