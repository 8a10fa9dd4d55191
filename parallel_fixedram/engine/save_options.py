"""How to save, once the gate has decided what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from parallel_fixedram.engine.direct_io import DirectIO
from parallel_fixedram.engine.pool import STALL_SECONDS


class Durability(StrEnum):
    """What has to be on stable storage when a save returns."""

    FULL = "full"
    """The file and its name."""
    NONE = "none"
    """Nothing: a power cut may lose the file, as with QEMU's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """How to save; what the gate allows has been decided before."""

    channels: int = 1
    """Number of workers."""
    direct_io: DirectIO = DirectIO.AUTO
    overwrite: bool = False
    durability: Durability = Durability.FULL
    max_rounds: int = 1
    """Rounds in all; 1 is a stopped save, more need a dirty source."""
    offset: int = 0
    """Where the stream starts in the file; bytes before it are kept."""
    max_gap_pages: int | None = None
    """Gaps of up to this many pages are written along; None for a default that fits the channel."""
    stall_seconds: float = STALL_SECONDS
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    """What the gate decided, for the report."""
