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
    """Why it failed, as a sentence; empty if it did not. There are no figures of a failed one, or one with wrong
    pages."""
    pause: float
    """Seconds that the guest stood still, without those for the copy."""
    stop: float
    device_state: float
    cont: float
    fix: float
    """To protect again what was written before the instant; a part of ``pause``, like the three before."""
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
    """How many failed; they have no wrong pages, because they have no file."""
    passed: bool
    """Whether none failed, and no page was wrong."""
    remembered: bool | None
    """Whether ``auto`` relies on this result on this host from now on; None if there were too few snapshots."""
