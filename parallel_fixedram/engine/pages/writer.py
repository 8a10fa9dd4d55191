"""PageWriter: writes pages of a window from guest RAM to their places in the file, and notes their digests.

For each window it tests the readable pages for zero, then writes those that are wanted and not zero. The test has just
brought the window into the cache, so copying it is cheap. Direct writes are only submitted: while the device works,
digests are computed and the next window is tested.

Runs close to each other are written as one, along with the gap between them, if that is cheaper than a second call. A
gap gets what RAM has there; where RAM was never touched it is not read, and zeros are written.

For a zero page nothing is written, and its bit is clear. Its place in the file reads as zeros because nothing was ever
written there or because it is punched out; where that is quicker, zeros are written.

If RAM may change meanwhile and nobody would tell, pages are copied first. The copy is tested once more, hashed and
written, so that digest and file agree whatever the guest does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from parallel_fixedram.core.bitmap import Bits, Runs, runs_of_ones
from parallel_fixedram.core.latency import added
from parallel_fixedram.core.protocols import Channel, GuestBlock
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.window import covered, merge_runs, nonzero_among
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock

HOLE_PAGES = 64
"""For this many pages in a row or more, punching a hole (60 microseconds) is quicker than writing zeros (measured)."""


class PageWriter:
    """Writes pages, and notes their digests.

    Args:
        guest_blocks: where pages come from.
        blocks: where the pages of each block go, in the same order.
        ledger: receives the digests.
        channel: the file.
        max_gap_pages: most pages that may be bridged to join two writes.
        staging: where pages are copied to and written from; None to write them from where they are.
        may_change: whether RAM may change without a dirty log that tells; this needs ``staging``.
        hashes: receive the hashes of what is written.
    """

    def __init__(
        self,
        guest_blocks: Sequence[GuestBlock],
        blocks: Sequence[SavedBlock],
        ledger: Ledger,
        channel: Channel,
        *,
        max_gap_pages: int,
        staging: Staging | None = None,
        may_change: bool = False,
        hashes: Hashes | None = None,
    ) -> None:
        assert staging or not may_change, "what changes has to be copied"
        self._guest_blocks = guest_blocks
        self._blocks = blocks
        self._ledger = ledger
        self._channel = channel
        self._max_gap_pages = max_gap_pages
        self._staging = staging
        self._may_change = may_change
        self._hashes = hashes

    def open(self) -> None:
        """Map guest RAM, and allocate room for copies; called once in every worker."""
        for each in self._guest_blocks:
            each.source.open()
        if self._staging:
            self._staging.open()

    def takes_any_length(self, block: int) -> bool:
        """Whether a window of this block may be longer than others, because nothing of it is copied."""
        return self._guest_blocks[block].source.views_stay_valid and self._staging is None

    def write(self, block: int, first: int, wanted: Bits, data: Bits, stale: Bits, tally: Tally) -> Bits:
        """Begin to write pages of a window; ``settle`` waits until they are written.

        Args:
            block: number of the block.
            first: number of the window's first page, a multiple of 64.
            wanted: 1 for every page to write, shape (pages,).
            data: 1 for every page that may be read, all wanted ones included.
            stale: 1 for every wanted page whose place in the file may contain data already.
            tally: is updated.

        Returns:
            1 for every wanted page that is in the file afterwards; the other wanted pages are zero.
        """
        guest, saved, clock = self._guest_blocks[block], self._blocks[block], time.perf_counter
        if not guest.source.views_stay_valid and not self._staging:
            self.settle(tally)  # pages() is about to reuse the memory that writes in flight read from
        started, spans = clock(), covered(merge_runs(runs_of_ones(wanted), self._max_gap_pages), len(wanted))
        pages = guest.source.pages(first, len(wanted), data & spans)
        store = wanted if guest.keeps_zero_pages else nonzero_among(pages, wanted, data)
        write, runs, holes = self._plan(store, stale)
        waited = tested = clock()
        channel, readable = self._channel, data
        if self._staging and len(runs):
            channel = self._staging.next_channel()
            waited = clock()
            spans = covered(runs, len(wanted))
            kept: Bits = spans & data & (write | (wanted == 0))  # the rest was zero, and is, whatever RAM has now
            pages, readable = self._staging.copy(pages, kept, spans & (kept == 0)), np.ones(len(wanted), np.uint8)
            if self._may_change and not guest.keeps_zero_pages:
                store = nonzero_among(pages, store, store)  # leave out pages that have become zero
                write, runs, holes = self._plan(store, stale)
        scanned = clock()
        tally.scan_seconds += scanned - started - (waited - tested)
        if len(runs):
            if self._hashes:  # before the write: if this worker dies in between, some of it may be in the file
                self._hashes.note(block, first, pages, store)
            hashed = clock()
            channel.write_runs(saved.page_offset(first), pages, runs, readable)
            written = clock()
            stored = np.flatnonzero(store)
            self._ledger.digests[block][first + stored] = page_digests(pages, store)[stored]
            tally.write_seconds += waited - tested + written - hashed
            tally.digest_seconds += hashed - scanned + clock() - written
        if len(holes):
            self._punch(block, first, holes, len(wanted), tally)
        moved = int(runs[:, 1].sum())
        tally.counted(wanted=wanted, stored=store, gap_pages=moved - int(np.count_nonzero(write)))
        tally.bytes += moved * saved.block.page_size
        return store

    def settle(self, tally: Tally) -> None:
        """Wait until everything is written."""
        started, channel = time.perf_counter(), self._staging or self._channel
        channel.settle()
        tally.write_seconds += time.perf_counter() - started
        tally.write_bins = added((tally.write_bins, channel.write_bins()))

    def _plan(self, store: Bits, stale: Bits) -> tuple[Bits, Runs, Runs]:
        """Which pages to write, the runs that they are joined to, and the runs to punch out."""
        write, emptied = store, runs_of_ones(stale & (store ^ 1))
        if not self._may_change:  # RAM is zero there, or will be written again: writing short runs is quicker
            short = emptied[:, 1] < HOLE_PAGES
            write = store | covered(emptied[short], len(store))
            emptied = emptied[~short]
        return write, merge_runs(runs_of_ones(write), self._max_gap_pages), emptied

    def _punch(self, block: int, first: int, holes: Runs, pages: int, tally: Tally) -> None:
        self.settle(tally)  # a write along with neighbours must not come after the hole
        saved, started = self._blocks[block], time.perf_counter()
        for start, count in holes.tolist():
            self._channel.punch(saved.page_offset(first + start), count * saved.block.page_size)
        if self._hashes:  # only now, because this worker may die before
            self._hashes.forget(block, first, covered(holes, pages))
        tally.write_seconds += time.perf_counter() - started
