"""A RAMBlock of a file, as several reports have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """One RAMBlock in the file."""

    idstr: str
    used_length: int
    page_size: int
    """Target page size in bytes."""
    pages: int
    data_pages: int
    """Pages present in the file."""
    zero_pages: int
    bitmap_offset: int
    pages_offset: int
