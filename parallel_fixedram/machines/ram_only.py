"""RamOnly: what a Machine answers that has neither processors of QEMU's, disks nor devices, and keeps its blocks."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import DiskOverlays


class RamOnly:
    """A part of a Machine; what is asked of its RAM it leaves to the other part."""

    target = ""
    """None of QEMU's (Machine.target)."""

    def get_ready(self) -> None:
        """There is nothing to do (Machine.get_ready)."""

    def sync_disks(self) -> Sequence[str]:
        """There are no disks (Machine.sync_disks)."""
        return ()

    def disks(self) -> Sequence[str]:
        """There are none (Machine.disks)."""
        return ()

    def overlays(self, folder: str | None) -> DiskOverlays:
        """There are no disks to go on with any (Machine.overlays)."""
        raise RequestError("there are no disks that could go on with overlays")

    def look_again(self) -> bool:
        """The blocks stay what they were (Machine.look_again)."""
        return False

    def definition(self) -> bytes:
        """libvirt does not know it (Machine.definition)."""
        return b""

    def saved(self) -> None:
        """It goes on (Machine.saved)."""

    def device_state(self) -> bytes:
        """There are no devices (Machine.device_state)."""
        return b""
