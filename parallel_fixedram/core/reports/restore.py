"""What was restored into RAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSeconds:
    """Where the time of a restore went."""

    total: float
    read: float
    """In read calls, mean over the workers."""
    write: float
    """Filling the destination, mean over the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBlock:
    """One RAMBlock that was restored."""

    idstr: str
    path: str
    used_length: int
    data_pages: int
    zero_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """A finished restore."""

    verb: ClassVar[str] = "restore"
    schema: ClassVar[str] = "restore"

    file: str
    channels: int
    direct_io: bool
    """Whether pages were read bypassing the page cache, in which the file was not."""
    blocks: tuple[RestoredBlock, ...]
    left_out: tuple[str, ...]
    """Blocks of the file that no destination was given for."""
    verified: bool
    """Whether every page was checked against its digest."""
    seconds: RestoreSeconds
    bytes: int
    """Page bytes read from the file."""
