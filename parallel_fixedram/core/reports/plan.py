"""What a save would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from parallel_fixedram.core.reports.choice import ChoiceReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a save would do."""

    verb: ClassVar[str] = "plan"
    schema: ClassVar[str] = "plan"

    file: str
    ram: int
    """Bytes of RAM."""
    data_pages: int
    """Pages that may hold something; those that turn out to be zero are not written."""
    runs: int
    """Maximal runs of such pages."""
    calls: int
    """Writes that they are joined into."""
    bytes: int
    """Bytes of those."""
    waits: bool
    """Whether a guest runs now, and would stand still while its pages are written."""
    choice: ChoiceReport
    host: Mapping[str, Any]
    seconds: float
    """How long it took to find out."""
