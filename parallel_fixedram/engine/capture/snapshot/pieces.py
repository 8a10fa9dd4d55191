"""Pieces: how much of its work a handler does at a time, before it looks again for writes that wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Large ones take less time in all; small ones let a write wait for less."""

    noted_bytes: int = 2 << 20
    """Released for one write before T. That costs no copy, and a guest that writes here and there waits less."""
    ahead_bytes: int = 1 << 20
    """Copied ahead of any write at a time."""
    least_protected_bytes: int = 2 << 20
    """Protected by one call, at least,"""
    most_protected_bytes: int = 64 << 20
    """and at most,"""
    protect_seconds: float = 0.0002
    """for so long, as far as that goes. Memory that was never touched takes a tenth of the time of other memory."""
    slots_ready: int = 8
    """Slots of the ring that memory is allocated for at a time."""


USUAL = Pieces()
