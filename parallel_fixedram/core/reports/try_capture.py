"""What a trial of the snapshot has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel_fixedram.core.reports.save import FaultSeconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedSnapshot:
    """One snapshot, whose file was checked against a copy of the guest's RAM and thrown away."""

    wrong_pages: int
    given_up: str
    """Why it came to nothing, as a sentence; empty if it did not. Of such a one, or one with wrong pages, there are no
    figures."""
    pause: float
    """Seconds that the guest stood still, without those for the copy."""
    stop: float
    device_state: float
    cont: float
    fix: float
    """To protect once more what was written before the instant; of ``pause`` as the three before."""
    total: float
    """Of the save, until the file would have had its name; the copy and its check apart."""
    faults: int
    """Writes of the guest that had to wait."""
    fault_seconds: FaultSeconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TryCaptureReport:
    """All snapshots of a trial."""

    verb: ClassVar[str] = "try-capture"
    schema: ClassVar[str] = "try_capture"

    machine: str
    ram: int
    """Bytes of all RAMBlocks."""
    qemu_version: str
    accelerator: str
    """``tcg`` or ``kvm``."""
    kernel: str
    snapshots: tuple[TriedSnapshot, ...]
    wrong_pages: int
    """Of all of them."""
    given_up: int
    """How many came to nothing; of these nothing is wrong, there is no file."""
    passed: bool
    """Whether none came to nothing, and no page was wrong."""
    remembered: bool | None
    """Whether ``auto`` goes by that on this host from now on; None if it shows too little for that."""
