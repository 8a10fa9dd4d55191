"""How pages are written, and why: what was done, or would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceReport:
    """How pages are written, what was chosen of it and why."""

    channels: int
    direct_io: bool
    gap_pages: int
    """Gaps of up to so many pages are bridged."""
    shard_pages: int
    """About how many pages a shard has."""
    capture: str
    """How the file comes to hold one instant: ``snapshot``, ``compare``, ``rounds`` or ``stopped``."""
    why: tuple[str, ...]
    """A sentence for everything that was left open."""
    predicted_write_seconds: float
    """How long writing the pages takes, if no page that may hold something is zero; with ``compare``, from the moment
    when the guest is stopped."""
    predicted_stable_seconds: float
    """Until the file is on stable storage, or complete where it is not synced; digests included."""
    measured_write_seconds: float | None
    """What the first of these two took; None for a plan."""
    measured_stable_seconds: float | None
    """What the second one took, without measuring what writes cost; None for a plan."""
    measured_by_predicted: float | None
    """How many times as long as predicted it took until the file was on stable storage; None for a plan."""
    model: Mapping[str, Any]
    """What writes cost: seconds a ``call`` and a ``byte``, by number of channels; ``source`` says who measured it."""
