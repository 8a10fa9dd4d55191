"""PageWriter: pages of a window, from guest RAM to their places in the file, and what the file then holds of them.

For every window: test the readable pages for zero, then write what is wanted and not zero. The test has just brought
the window into the cache, so the copy that follows is cheap. Direct writes are only begun: while the device works,
digests are computed and the next window is tested.

Runs close to each other are written as one, the gap between them along with them, where that is cheaper than a second
call. What is written over a gap is what RAM holds there; where it was never touched it is not read, and zeros are
written.

A page that is zero gets no bytes but a clear bit; its place in the file reads as zeros because nothing was ever written
there, or because it is punched out; where that is quicker, zeros are written.

Where RAM changes meanwhile, pages are copied first. The copy is tested once more, hashed and written: digest and file
agree whatever the guest does.
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
"""From so many pages in a row on, making a hole is quicker than writing zeros: 60 microseconds (measured)."""


class PageWriter:
    """Writes pages, and notes their digests.

    Args:
        guest_blocks: where pages come from.
        blocks: where the pages of each block go, in the same order.
        ledger: gets the digests.
        channel: the file.
        max_gap_pages: how many pages may be bridged to join two writes into one.
        staging: where pages are copied and written from, instead of from where they are.
        may_change: whether RAM changes meanwhile; it needs ``staging``.
        hashes: get the hashes of what is written, too.
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
        """Map guest RAM, get room for copies; called once in every worker."""
        for each in self._guest_blocks:
            each.source.open()
        if self._staging:
            self._staging.open()

    def write(self, block: int, first: int, wanted: Bits, data: Bits, stale: Bits, tally: Tally) -> Bits:
        """Begin to write pages of a window; ``settle`` says when they are written.

        Args:
            block: number of the block.
            first: number of the window's first page, a multiple of 64.
            wanted: 1 for every page that is to be written, shape (pages,).
            data: 1 for every page that may be read; all that is wanted.
            stale: 1 for every wanted page whose place in the file may hold something already.
            tally: gets what was done.

        Returns:
            1 for every wanted page that is in the file afterwards; the others are zero.
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
            kept: Bits = spans & data & (write | (wanted == 0))
            pages, readable = self._staging.copy(pages, kept, spans & (kept == 0)), np.ones(len(wanted), np.uint8)
            if self._may_change and not guest.keeps_zero_pages:
                store = nonzero_among(pages, store, store)  # what is zero by now is left out
                write, runs, holes = self._plan(store, stale)
        scanned = clock()
        tally.scan_seconds += scanned - started - (waited - tested)
        if len(runs):
            if self._hashes:  # before the write: if this worker dies in between, the file may hold something of them
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
        """Return when everything that was begun is written."""
        started, channel = time.perf_counter(), self._staging or self._channel
        channel.settle()
        tally.write_seconds += time.perf_counter() - started
        tally.write_bins = added((tally.write_bins, channel.write_bins()))

    def _plan(self, store: Bits, stale: Bits) -> tuple[Bits, Runs, Runs]:
        """Which pages are written, the runs that they are joined to, and which are punched out."""
        write, emptied = store, runs_of_ones(stale & (store ^ 1))
        if not self._may_change:  # RAM stands still and is zero there: short runs are written, which is quicker
            short = emptied[:, 1] < HOLE_PAGES
            write = store | covered(emptied[short], len(store))
            emptied = emptied[~short]
        return write, merge_runs(runs_of_ones(write), self._max_gap_pages), emptied

    def _punch(self, block: int, first: int, holes: Runs, pages: int, tally: Tally) -> None:
        self.settle(tally)  # a write along with neighbours must not come after the hole
        saved, started = self._blocks[block], time.perf_counter()
        for start, count in holes.tolist():
            self._channel.punch(saved.page_offset(first + start), count * saved.block.page_size)
        if self._hashes:  # only now: this worker may die, too
            self._hashes.forget(block, first, covered(holes, pages))
        tally.write_seconds += time.perf_counter() - started
