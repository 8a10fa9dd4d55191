"""What the rounds of a live save would take in a stream without fixed offsets, which appends every page again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.reports.save import RoundReport

PAGE_HEAD = 8
"""Bytes before a page: the word with its address and flags (QEMU migration/ram.c, save_page_header)."""
ZERO_PAGE = PAGE_HEAD + 1
"""Bytes of a zero page: that word and one byte."""


def stream_bytes(rounds: Sequence[RoundReport], page_size: int = TARGET_PAGE_SIZE) -> list[int]:
    """How long such a stream would be after each round, bytes."""
    return list(
        accumulate(each.written_pages * (PAGE_HEAD + page_size) + each.zero_pages * ZERO_PAGE for each in rounds)
    )
