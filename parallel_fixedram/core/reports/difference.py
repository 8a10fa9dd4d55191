"""What does not match, and where: as several reports and messages have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Pages, or other bytes, that are not what they should be."""

    what: str
    """What does not match, in a few words."""
    idstr: str | None
    """The block, or None for bytes that belong to none."""
    first_page: int | None
    pages: int
    """Number of pages, 0 for bytes that are not pages."""
    offset: int | None
    """File offset of the first byte concerned."""

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at {self.offset:#x}"
        if self.first_page is None:
            return f"{self.what}{place}" if self.idstr is None else f"block {self.idstr!r}: {self.what}{place}"
        last = self.first_page + self.pages - 1
        which = f"page {self.first_page}" if self.pages == 1 else f"pages {self.first_page}-{last}"
        return f"block {self.idstr!r} {which}{place}: {self.what}"
