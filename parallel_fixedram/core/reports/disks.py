"""Disks of a running QEMU, and what became of their overlays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel_fixedram.core.disks import Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk that a guest can write to."""

    disk: Disk
    """What it is called and where it is; nothing is said of the contents of its images."""
    overlays: int
    """How many of its images, from the top, are overlays of ours."""
    shared: bool
    """Whether other guests may write to it too (share-rw)."""
    why_not: str
    """Why no overlay can be put on it, as the end of a sentence; empty if one can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedDisk:
    """A disk whose overlays were merged."""

    device: str
    """Its id, that of its drive, or its path among QEMU's objects."""
    image: str
    """What it goes on with, and what the overlays were merged into."""
    overlays: tuple[str, ...]
    """Those that are gone."""
    bytes: int
    """How much was copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisksReport:
    """The disks of a guest, as they are now."""

    verb: ClassVar[str] = "disks"
    schema: ClassVar[str] = "disks"

    disks: tuple[AttachedDisk, ...]
    committed: tuple[CommittedDisk, ...]
    removed: tuple[str, ...]
    """Overlays that a save had left unused, and that are gone now."""
    notes: tuple[str, ...]
