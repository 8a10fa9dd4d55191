"""WriteJob: the worker's part of a save, from guest RAM to the file.

For every window: test the readable pages for zero, then write what is dirty and not zero. The test has just brought the
window into the cache, so the copy that follows is cheap. Direct writes are only begun: while the device works the next
window is tested and digests are computed. After a pre-copy every page of the shard is first held against what the file
has, and what is the same is not dirty.

Runs close to each other are written as one, the gap between them along with them, where that is cheaper than a second
call. What is written over a gap is what RAM holds there; where it was never touched it is not read, and zeros are
written.

A page that is zero gets no bytes but a clear bit; its place in the file reads as zeros because nothing was ever written
there, or because it is punched out. From the second round on any dirty page may have been written before, by an earlier
round, a pre-copy, or along with its neighbours, so there every zero page is punched; where that is quicker, written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, Runs, runs_of_ones
from parallel_fixedram.core.protocols import Channel, PageSource
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.bitmaps import SharedBitmaps
from parallel_fixedram.engine.pages.digest import page_digests, write_digests
from parallel_fixedram.engine.pages.precopy import KnownPages
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.window import WINDOW_PAGES, covered, merge_runs, nonzero_among
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock

NO_RUNS: Runs = np.empty((0, 2), np.int64)

HOLE_PAGES = 64
"""Pages in a row from which on a hole is made sooner than zeros are written: 60 microseconds (measured)."""

CHECK_PAGES = 1024
"""Pages that are held against the file at a time: nothing follows that would want them in the cache."""


class WriteJob:
    """Writes the dirty pages of a shard.

    Args:
        blocks: where the pages of each block go.
        sources: where they come from, in the same order.
        bitmaps: what to write, what may be read, and what is in the file afterwards.
        channel: the file.
        digests: the file as a channel that takes unaligned writes.
        tables: where the digest of page 0 of each block goes, in shared memory; 0 while no digests are wanted.
        max_gap_pages: how many clean, zero or never-touched pages may be written along to join two writes into one.
        window_pages: how many pages are tested and then written at a time.
        keep_zero_pages: one a block, whether its zero pages are written like others.
        staging: where pages are copied and written from, instead of ``channel`` and from where they are.
        known: what the file holds of each page already, if a pre-copy has written them; only what changed is written.
    """

    def __init__(
        self,
        blocks: Sequence[SavedBlock],
        sources: Sequence[PageSource],
        bitmaps: SharedBitmaps,
        channel: Channel,
        *,
        digests: Channel,
        tables: NDArray[np.uint64],
        max_gap_pages: int,
        window_pages: int = WINDOW_PAGES,
        keep_zero_pages: Sequence[bool] = (),
        staging: Staging | None = None,
        known: KnownPages | None = None,
    ) -> None:
        self._blocks = blocks
        self._sources = sources
        self._bitmaps = bitmaps
        self._channel = channel
        self._digests = digests
        self._tables = tables
        self._max_gap_pages = max_gap_pages
        self._window_pages = window_pages
        self._staging = staging
        self._known = known
        self._keep_zero_pages = keep_zero_pages or [False] * len(blocks)

    def open(self) -> None:
        """Map guest RAM (Job.open)."""
        for source in self._sources:
            source.open()
        if self._staging:
            self._staging.open()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run)."""
        tally = Tally()
        dirty = self._bitmaps.dirty[shard.block].bits(shard.first_word, shard.words)
        data = self._bitmaps.data[shard.block].bits(shard.first_word, shard.words)
        file = self._bitmaps.file[shard.block]
        present = file.bits(shard.first_word, shard.words)
        first_page = shard.first_word * WORD_PAGES
        digests = np.zeros(len(dirty), np.uint64)
        if self._known:
            dirty = self._changed(self._known, shard, dirty, data, present, tally)
        for start in range(0, len(dirty), self._window_pages):
            window = slice(start, start + self._window_pages)
            if not dirty[window].any():
                continue
            store = self._write_window(shard, first_page + start, dirty[window], data[window], digests[window], tally)
            present[window] = np.where(dirty[window], store, present[window])
        self._settle(tally)
        file.put_bits(shard.first_word, present)
        if table := int(self._tables[shard.block]):
            write_digests(self._digests, table, first_page, digests, present)
        return tally

    def _write_window(
        self, shard: Shard, first: int, dirty: Bits, data: Bits, digests: NDArray[np.uint64], tally: Tally
    ) -> Bits:
        """Write a window that starts at page ``first``; returns which of its dirty pages are in the file now."""
        saved, source, clock = self._blocks[shard.block], self._sources[shard.block], time.perf_counter
        if not source.lasting and not self._staging:
            self._settle(tally)
        started = clock()
        wanted = data & covered(merge_runs(runs_of_ones(dirty), self._max_gap_pages), len(dirty))
        pages = source.pages(first, len(dirty), wanted)
        store = dirty
        if not self._keep_zero_pages[shard.block]:
            store = dirty & nonzero_among(pages, dirty, data)
        write, emptied = store, runs_of_ones(dirty & (store ^ 1)) if shard.round > 0 else NO_RUNS
        if self._known:  # RAM stands still and is zero there: what is short is written sooner than a hole is made
            short = emptied[:, 1] < HOLE_PAGES
            write = store | covered(emptied[short], len(dirty))
            emptied = emptied[~short]
        runs = merge_runs(runs_of_ones(write), self._max_gap_pages)
        scanned = clock()
        tally.scan_seconds += scanned - started
        if len(runs):
            channel, readable = self._channel, data
            if self._staging:
                channel, spans = self._staging.next_channel(), covered(runs, len(dirty))
                pages = self._staging.copy(pages, spans & data, spans & (data == 0))
                readable = np.ones(len(dirty), np.uint8)
            channel.write_runs(saved.page_offset(first), pages, runs, readable)
            written = clock()
            tally.write_seconds += written - scanned
            if self._tables[shard.block]:
                digests[:] = page_digests(pages, store)
                tally.digest_seconds += clock() - written
        if len(emptied):
            self._settle(tally)  # a write along with neighbours must not come after the hole
            for start, count in emptied.tolist():
                self._channel.punch(saved.page_offset(first + start), count * saved.block.page_size)
        stored, moved = int(np.count_nonzero(store)), int(runs[:, 1].sum())
        tally.written_pages += stored
        tally.gap_pages += moved - int(np.count_nonzero(write))
        tally.zero_pages += int(np.count_nonzero(dirty)) - stored
        tally.bytes += moved * saved.block.page_size
        return store

    def _changed(self, known: KnownPages, shard: Shard, dirty: Bits, data: Bits, present: Bits, tally: Tally) -> Bits:
        """Which pages of a shard are not what the file holds; notes the digests of those that hold something."""
        started, block, first_page = time.perf_counter(), shard.block, shard.first_word * WORD_PAGES
        found = np.zeros(len(dirty), np.uint8)
        for start in range(0, len(dirty), CHECK_PAGES):
            part = slice(start, start + CHECK_PAGES)
            wanted = dirty[part]
            if not wanted.any():
                continue
            first = first_page + start
            pages = self._sources[block].pages(first, len(wanted), wanted & data[part])
            held = wanted & known.held(block, first, len(wanted))
            suspects = wanted ^ held
            if held.any():
                suspects |= known.changed(block, first, pages, held)
            full = suspects
            if not self._keep_zero_pages[block]:
                full = suspects & nonzero_among(pages, suspects, data[part])
            emptied: Bits = suspects & present[part] & (full == 0)
            if full.any() or emptied.any():
                digests = known.digests[block][first : first + len(wanted)]
                digests[emptied != 0] = 0
                digests[full != 0] = page_digests(pages, full)[full != 0]
                known.forget(block, first, full | emptied)
                found[part] = full | emptied
        tally.scan_seconds += time.perf_counter() - started
        return found

    def _settle(self, tally: Tally) -> None:
        started = time.perf_counter()
        (self._staging or self._channel).settle()
        tally.write_seconds += time.perf_counter() - started
