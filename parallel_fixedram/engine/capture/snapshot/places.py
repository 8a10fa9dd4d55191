"""Where the pages of a snapshot come from, and where they go."""

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
    """Guest RAM; all sequences have one element for each block, in the file's order."""

    groups: Groups
    sources: Sequence[PageSource]
    data: Sequence[PageBitmap]
    """Pages that may contain data at T, in shared memory; those of noted groups are added after T."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file, and tables about its pages; sequences as in Origin."""

    blocks: Sequence[SavedBlock]
    present: Sequence[PageBitmap]
    """Set for the pages in the file; in shared memory."""
    digests: Sequence[NDArray[np.uint64]]
    """Receive the digest of each of these, in shared memory; shape (pages,) each."""
    keep_zero_pages: Sequence[bool]
    """Whether zero pages are written like any others."""
    max_gap_pages: int
    """Most zero pages that may be bridged to join two writes into one."""
