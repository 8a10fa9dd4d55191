"""What happens to a guest's disks when its RAM is saved."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import DiskOverlays, Machine
from parallel_fixedram.core.save_options import Disks, DisksMode

HINT = (
    "--disks overlay: their images stay as they are at that instant, and the guest goes on writing to overlays; "
    "--disks none: the guest is saved without them; --disks refuse: this error"
)


def overlays_for(machine: Machine, disks: Disks, *, runs: bool) -> DiskOverlays:
    """The overlays for a machine's disks, as requested.

    Args:
        machine: whose disks.
        disks: what to do about them.
        runs: whether the machine runs.

    Raises:
        RequestError: there are disks although there must not be any.
        MachineError: the machine is gone.
    """
    mode = disks.mode or (DisksMode.REFUSE if runs else DisksMode.NONE)
    if mode is DisksMode.NONE or not (names := machine.disks()):
        return _NoOverlays()
    if mode is DisksMode.REFUSE:
        what = f"disk {names[0]!r}" if len(names) == 1 else f"disks {', '.join(map(repr, names))}"
        raise RequestError(f"the guest writes to {what}: a file of its RAM alone could not be restored", hint=HINT)
    return machine.overlays(disks.folder)


class _NoOverlays:
    """DiskOverlays of a machine whose disks are left alone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def prepare(self) -> Sequence[str]:
        """Nothing to make (DiskOverlays.prepare)."""
        return ()

    def freeze(self) -> None:
        """Nothing to do (DiskOverlays.freeze)."""

    def frozen(self, *, durable: bool) -> Sequence[tuple[Disk, str]]:
        """None (DiskOverlays.frozen)."""
        return ()
