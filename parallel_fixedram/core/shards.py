"""Divide a round's dirty pages into shards.

A shard is a range of whole bitmap words of one block (64 pages each), so two workers never touch the same word of any
bitmap and need no lock. Which worker takes which shard, and when, does not matter: every page has its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap

MIN_SHARD_PAGES = 256
"""A smaller shard costs more to hand out than to write."""
MAX_SHARD_PAGES = 4096
"""A larger one delays the notice of progress and leaves workers idle at the end of a round."""
SHARDS_PER_WORKER = 32
SPAN_WORDS = 1 << 12
"""A shard stays inside one such stretch, 1 GiB of RAM, so that few pages far apart are no long walk for one worker."""

WINDOW_PAGES = 256
"""Pages of a shard that are tested and then written together: 1 MiB fits a core's cache, so that the copy finds them
there, and larger writes are not faster."""
WINDOW_PAGES_DIRECT = 512
"""The same where the page cache is bypassed. A write of 2 MiB is two requests of pages scattered over memory: 254
segments are all that one takes."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Words ``first_word`` (inclusive) to ``first_word + words`` (exclusive) of one block's bitmaps."""

    block: int
    """Number of the block in the file's order."""
    first_word: int
    words: int
    pages: int
    """How many of its pages are to be handled."""
    round: int = 0
    """The sweep over the dirty bitmap that it belongs to, from 0."""


def shard_pages(total_pages: int, workers: int) -> int:
    """How many pages a shard should have so that all workers end at about the same time."""
    return min(max(total_pages // (workers * SHARDS_PER_WORKER), MIN_SHARD_PAGES), MAX_SHARD_PAGES)


def plan_shards(
    bitmaps: Sequence[PageBitmap], *, workers: int, round_number: int = 0, target: int | None = None
) -> list[Shard]:
    """Shards that together hold every set bit exactly once, in the order of the bitmaps and pages.

    Args:
        bitmaps: pages to handle, one bitmap a block, in the file's order.
        workers: how many will share the work, at least 1.
        round_number: goes into every shard.
        target: about how many set bits a shard should have; None for what fits any kind of work.

    Returns:
        Disjoint shards without empty words at their ends; none when no bit is set.
    """
    counts = [np.bitwise_count(bitmap.words) for bitmap in bitmaps]
    target = target or shard_pages(sum(int(count.sum(dtype=np.int64)) for count in counts), workers)
    shards: list[Shard] = []
    for block, count in enumerate(counts):
        used = np.flatnonzero(count)
        if not len(used):
            continue
        # done[n]: set bits up to word n of the used ones; a shard ends with the word that brings them to a multiple of
        # target
        done = np.cumsum(count[used], dtype=np.int64)
        total = int(done[-1])
        cuts = np.searchsorted(done, np.arange(target, total, target)) + 1
        spans = np.flatnonzero(np.diff(used // SPAN_WORDS)) + 1
        edges = sorted({0, *cuts.tolist(), *spans.tolist(), len(used)})
        for start, end in pairwise(edges):
            first, last = int(used[start]), int(used[end - 1])
            pages = int(done[end - 1] - (done[start - 1] if start else 0))
            shards.append(Shard(block, first, last + 1 - first, pages, round_number))
    return shards
