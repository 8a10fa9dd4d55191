"""What the processes of a snapshot are given: where pages come from, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.protocols import PageSource
from parallel_fixedram.engine.capture.snapshot.groups import Groups
from parallel_fixedram.format.mapped_ram import SavedBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Guest RAM, a block after the other in the file's order."""

    groups: Groups
    sources: Sequence[PageSource]
    data: Sequence[PageBitmap]
    """Pages that may hold something at T, in shared memory; those of noted groups join after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file, and what is told of it, in the same order."""

    blocks: Sequence[SavedBlock]
    present: Sequence[PageBitmap]
    """Get the pages that are in the file, in shared memory."""
    digests: Sequence[NDArray[np.uint64]]
    """Get the digest of each of these, in shared memory; shape (pages,) each."""
    keep_zero_pages: Sequence[bool]
    """Whether zero pages are written like others."""
    max_gap_pages: int
    """How many zero pages may be bridged to join two writes into one."""
