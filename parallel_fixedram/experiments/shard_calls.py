"""The calls that a save would make: pages planned into shards, and a shard's pages joined into writes.

Planning and joining are done by the code that a real save uses; only which pages hold data is made up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, PageBitmap, runs_of_ones
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard, plan_shards
from parallel_fixedram.engine.pages.window import merge_runs

PART_PAGES = 1 << 16
"""Only this much per channel of a large guest (256 MiB, 16 shards) is simulated, as a sample of all of it."""
MIN_PART_PAGES = 1 << 21
MAX_RUNS = 1 << 15
"""The same for a guest whose data is in many short runs."""

Calls = Sequence[tuple[int, int]]
"""Offset in the file and length of each write, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWrites:
    """The writes of a save."""

    shards: tuple[Calls, ...]
    """In the order in which workers take them; a worker goes through one from its beginning to its end."""
    share: float = 1.0
    """What part of the whole save these shards are, above 0 and up to 1."""

    @property
    def bytes(self) -> int:
        """Bytes that these shards write."""
        return sum(size for shard in self.shards for _, size in shard)

    @property
    def calls(self) -> int:
        """Writes in these shards."""
        return sum(len(shard) for shard in self.shards)


def planned(
    dirty: PageBitmap,
    data: PageBitmap | None = None,
    *,
    channels: int,
    max_gap_pages: int = 0,
    shard_pages: int | None = None,
    window_pages: int = WINDOW_PAGES,
    share: float = 1.0,
) -> PlannedWrites:
    """The writes of a save of these pages of one block, none of them zero.

    Args:
        dirty: pages to write.
        data: pages that may be bridged; the dirty ones alone if None.
        channels: number of workers, which the size of shards depends on.
        max_gap_pages: so many pages are bridged to join two writes.
        shard_pages: about how many dirty pages a shard has; None for the planner's own rule.
        window_pages: no write is longer.
        share: goes into the workload.
    """
    readable = dirty if data is None else data
    shards = plan_shards([dirty], workers=channels, target=shard_pages)
    calls = tuple(tuple(_calls(shard, dirty, readable, max_gap_pages, window_pages)) for shard in shards)
    return PlannedWrites(shards=calls, share=share)


def _calls(
    shard: Shard, dirty: PageBitmap, data: PageBitmap, max_gap_pages: int, window_pages: int
) -> Iterable[tuple[int, int]]:
    first = shard.first_word * WORD_PAGES
    bits, readable = (bitmap.bits(shard.first_word, shard.words) for bitmap in (dirty, data))
    for start in range(0, len(bits), window_pages):
        window = slice(start, start + window_pages)
        for page, count in merge_runs(runs_of_ones(bits[window]), max_gap_pages, only=readable[window]).tolist():
            yield (first + start + page) * TARGET_PAGE_SIZE, count * TARGET_PAGE_SIZE


def first_pages(pages: int, count: int) -> PageBitmap:
    """Of ``pages`` pages, the first ``count``."""
    bitmap = PageBitmap(pages)
    bitmap.set_range(PageRange(0, count))
    return bitmap


def random_pages(pages: int, count: int, seed: int) -> PageBitmap:
    """Of ``pages`` pages, ``count`` at random, the same ones for the same seed."""
    bitmap = PageBitmap(pages)
    bitmap.set_pages(np.random.default_rng(seed).choice(pages, count, replace=False))
    return bitmap


def large_guest(pages: int, dirty: float, *, channels: int, max_gap_pages: int, window_pages: int) -> PlannedWrites:
    """The writes for a guest of any size, whose pages are all data and partly dirty, at random.

    If there are too many, those for the first part of it, which is like the rest.

    Args:
        pages: of RAM, at least 1.
        dirty: share of the pages to write, above 0 and up to 1.
        channels: number of workers.
        max_gap_pages: as for ``planned``.
        window_pages: as for ``planned``.
    """
    part = max(MIN_PART_PAGES, PART_PAGES * channels)
    if dirty < 1:
        part = min(part, round(MAX_RUNS / (dirty * (1 - dirty))))
    part = min(pages, part)
    everything = first_pages(part, part)
    chosen = everything if dirty == 1 else random_pages(part, max(round(part * dirty), 1), seed=1)
    return planned(
        chosen,
        everything,
        channels=channels,
        max_gap_pages=max_gap_pages,
        window_pages=window_pages,
        share=part / pages,
    )
