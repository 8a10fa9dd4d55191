"""RamOnly: the answers of a Machine without a QEMU, disks or devices, whose blocks never change."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import DiskOverlays


class RamOnly:
    """Base class for such a Machine; the methods about RAM are left to the subclass."""

    target = ""
    """No architecture (Machine.target)."""

    def get_ready(self) -> None:
        """There is nothing to do (Machine.get_ready)."""

    def sync_disks(self) -> Sequence[str]:
        """There are no disks (Machine.sync_disks)."""
        return ()

    def disks(self) -> Sequence[str]:
        """There are none (Machine.disks)."""
        return ()

    def overlays(self, folder: str | None) -> DiskOverlays:
        """Not possible without disks (Machine.overlays)."""
        raise RequestError("there are no disks that could be put on overlays")

    def look_again(self) -> bool:
        """No: the blocks never change (Machine.look_again)."""
        return False

    def definition(self) -> bytes:
        """None: it is not a domain of libvirt (Machine.definition)."""
        return b""

    def saved(self) -> None:
        """Nothing to do (Machine.saved)."""

    def device_state(self) -> bytes:
        """There are no devices (Machine.device_state)."""
        return b""
