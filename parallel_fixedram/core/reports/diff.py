"""What a comparison of two files found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel_fixedram.core.reports.difference import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """A RAMBlock that is not in both files with the same length."""

    idstr: str
    length_a: int | None
    """Bytes; None where the file has no such block."""
    length_b: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """A comparison of two files that ran to its end."""

    verb: ClassVar[str] = "diff"
    schema: ClassVar[str] = "diff"

    file_a: str
    file_b: str
    equal: bool
    differing_pages: int
    differences: tuple[Difference, ...]
    """Differing ranges, ascending by block and page; the first of them if there are very many."""
    truncated: bool
    """Whether there are more ranges than ``differences`` lists."""
    only_in_a: tuple[str, ...]
    """Blocks that the other file lacks, or has with another length."""
    only_in_b: tuple[str, ...]
    not_compared: tuple[NotCompared, ...]
    """The same blocks with their lengths."""
    seconds: float
