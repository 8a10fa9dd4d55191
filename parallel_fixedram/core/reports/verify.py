"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel_fixedram.core.reports.block import BlockReport
from parallel_fixedram.core.reports.difference import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A verification that ran to its end."""

    verb: ClassVar[str] = "verify"
    schema: ClassVar[str] = "verify"

    file: str
    ok: bool
    quick: bool
    digests: bool
    """Whether the file carries digests and they were checked."""
    ram: tuple[str, ...]
    """Blocks compared against live RAM, or that of the QEMU that loaded the file."""
    loaded_by: str | None
    """The program that loaded the file for that; None where none did."""
    ram_bytes: int
    """Bytes of the blocks that were compared with RAM."""
    blocks: tuple[BlockReport, ...]
    stale_pages: int | None
    """Zero pages whose place in the file holds other bytes; None if that was not checked."""
    bad_pages: int
    differences: tuple[Difference, ...]
    """What was found; only the first of it if there is very much."""
    truncated: bool
    """Whether there is more than ``differences`` lists."""
    warnings: tuple[str, ...]
    seconds: float
