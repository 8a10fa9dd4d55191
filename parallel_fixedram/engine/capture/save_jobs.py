"""The jobs of a save, as a choice wants them: write, digest, and pre-copy where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.choice import WINDOW_PAGES_BUFFERED, Choice
from parallel_fixedram.core.protocols import Channel, GuestBlock
from parallel_fixedram.engine.pages.bitmaps import SharedBitmaps
from parallel_fixedram.engine.pages.digest import DigestJob
from parallel_fixedram.engine.pages.precopy import KnownPages, PrecopyJob
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.write import WriteJob
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.direct_channel import DirectChannel

WRITE, DIGEST, PRECOPY = 0, 1, 2
"""Places of the jobs in the list."""
PHASES = ("write", "digest", "precopy")
"""What ``progress`` calls them."""


def save_jobs(
    guest_blocks: Sequence[GuestBlock],
    layout: FileLayout,
    bitmaps: SharedBitmaps,
    tables: NDArray[np.uint64],
    choice: Choice,
    *,
    buffered: FileChannel,
    direct: FileChannel | None,
    known: KnownPages | None,
) -> list[Job]:
    """What the workers of a save have to be able to do.

    Args:
        guest_blocks: where pages come from.
        layout: where they go, in the same order.
        bitmaps: which pages.
        tables: where the digest of page 0 of each block goes, in shared memory; 0 while that is not known.
        choice: how to write; ``known`` goes with a pre-copy.
        buffered: the file, through the page cache.
        direct: the file past it, where it could be opened so.
        known: what a pre-copy has written, to be filled by it.
    """
    sources = [each.source for each in guest_blocks]
    keep = [each.keeps_zero_pages for each in guest_blocks]
    page_size = max(saved.block.page_size for saved in layout.blocks)
    staging: Staging | None = None
    pages: FileChannel = buffered
    if direct and choice.direct:

        def another() -> Channel:
            return direct.another() if isinstance(direct, DirectChannel) else direct

        staging = Staging(another, page_size, window_pages=choice.window_pages)
        # after a pre-copy only what changed is left: it is little, and reaches the page cache sooner than the device
        pages = buffered if choice.precopy else direct
    elif choice.precopy:
        staging = Staging(lambda: buffered, page_size, window_pages=choice.window_pages, slots=1)
    write = WriteJob(
        layout.blocks,
        sources,
        bitmaps,
        pages,
        digests=buffered,
        tables=tables,
        max_gap_pages=0 if choice.precopy else choice.gap_pages,
        window_pages=WINDOW_PAGES_BUFFERED if choice.precopy else choice.window_pages,
        keep_zero_pages=keep,
        staging=None if choice.precopy else staging,
        known=known,
    )
    digest = DigestJob(layout.blocks, bitmaps.file, tables, pages=pages, digests=buffered)
    if not known or not staging:
        return [write, digest]
    precopy = PrecopyJob(
        layout.blocks,
        sources,
        bitmaps,
        staging,
        known,
        max_gap_pages=choice.gap_pages,
        window_pages=choice.window_pages,
        keep_zero_pages=keep,
    )
    return [write, digest, precopy]
