"""How to save, once the gate has decided what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from parallel_fixedram.core.choice import DirectIO, Wishes
from parallel_fixedram.engine.workers.pool import STALL_SECONDS
from parallel_fixedram.host.files.direct_channel import DEPTH


class Durability(StrEnum):
    """What has to be on stable storage when a save returns."""

    FULL = "full"
    """The file and its name."""
    NONE = "none"
    """Nothing: a power cut may lose the file, as with QEMU's own."""


class Cache(StrEnum):
    """What becomes of the file in the page cache."""

    KEEP = "keep"
    """Whatever the kernel leaves there: a restore soon afterwards finds it."""
    DROP = "drop"
    """It is taken out once it is on stable storage: its memory is for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """How to save; what the gate allows has been decided before."""

    channels: int | None = 1
    """Number of workers; None to choose it, up to ``most_channels``."""
    most_channels: int = 1
    why_most: str = ""
    """What forbids more than ``most_channels``."""
    direct_io: DirectIO = DirectIO.AUTO
    overwrite: bool = False
    durability: Durability = Durability.FULL
    max_rounds: int = 1
    """Rounds in all; 1 is a stopped save, more need a dirty source."""
    offset: int = 0
    """Where the stream starts in the file; bytes before it are kept."""
    gap_pages: int | None = None
    """Gaps of up to this many pages are written along; None to choose it."""
    shard_pages: int | None = None
    """About how many pages a shard has; None to choose it."""
    queue_depth: int = DEPTH
    """Direct writes in flight of each worker; 0 for one by one."""
    calibrate: bool = False
    """Whether to measure what writes cost, even if it is known from earlier."""
    cache: Cache = Cache.KEEP
    stall_seconds: float = STALL_SECONDS
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    """What the gate decided, for the report."""

    def wishes(self) -> Wishes:
        """What of this is to be chosen, and what is not."""
        return Wishes(
            channels=self.channels,
            most_channels=self.most_channels,
            why_most=self.why_most,
            direct_io=self.direct_io,
            gap_pages=self.gap_pages,
            shard_pages=self.shard_pages,
        )
