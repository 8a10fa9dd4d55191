"""Pre-copy: most pages are in the file before the guest is stopped, and what changed since shows in a hash.

::

    guest runs:   page -> private copy -> written, its hash into a table                 at the device's speed
    guest waits:  page -> hash == table?  then the file holds it; else it is written     at memory's speed

No dirty log is needed, which from outside a QEMU there is none of. The hash is XXH3-128 with a seed that nobody else
knows: two contents of a page have the same one with a probability of 2**-128, and a guest cannot look for such a pair.
What is hashed is the copy that is written, never RAM itself, which changes meanwhile.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, PageBitmap, runs_of_ones, words_for
from parallel_fixedram.core.protocols import Channel, Pages, PageSource
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.bitmaps import SharedBitmaps, shared_words
from parallel_fixedram.engine.pages.digest import page_digests, write_digests
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.window import covered, merge_runs, nonzero_among
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock

_STEP_WORDS = 1 << 14
"""Words of a bitmap that are unpacked at a time."""


class KnownPages:
    """What the file holds of each page, in memory that workers share; 24 bytes a page that holds something.

    Memory that belongs to other pages is never looked at, and so never allocated. ``first`` is a multiple of 64.

    Args:
        blocks: in the file's order.

    Attributes:
        digests: XXH3-64 of each page, as the trailer has it, one array a block; 0 where there is none.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self._seed = secrets.randbits(64)
        self._held = [PageBitmap(block.pages, shared_words(words_for(block.pages))) for block in blocks]
        self._hashes: list[NDArray[np.uint64]] = [shared_words(2 * block.pages).reshape(-1, 2) for block in blocks]
        self.digests: list[NDArray[np.uint64]] = [shared_words(block.pages) for block in blocks]

    def hashes_of(self, pages: Pages, wanted: NDArray[np.int64]) -> NDArray[np.uint64]:
        """XXH3-128 of the pages with these numbers, shape (numbers, 2)."""
        digest, view, size, seed = xxhash.xxh3_128_digest, pages.data.cast("B"), pages.shape[1] * 8, self._seed
        whole = b"".join([digest(view[start : start + size], seed) for start in (wanted * size).tolist()])
        return np.frombuffer(whole, np.uint64).reshape(-1, 2)

    def held(self, block: int, first: int, count: int) -> Bits:
        """1 for every page, of ``count`` from ``first`` on, that the file holds something of."""
        return self._held[block].page_bits(first, count)

    def note(self, block: int, first: int, pages: Pages, bits: Bits) -> None:
        """These contents are about to be written.

        Args:
            block: number of the block.
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            bits: which of them.
        """
        wanted = np.flatnonzero(bits)
        self._hashes[block][first + wanted] = self.hashes_of(pages, wanted)
        self._held[block].put_bits(first // WORD_PAGES, self.held(block, first, len(bits)) | bits)

    def changed(self, block: int, first: int, pages: Pages, bits: Bits) -> Bits:
        """1 for every page, of those whose bit is 1, that is not what the file holds.

        Args:
            block: number of the block.
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            bits: which of them to look at; the file holds something of each.
        """
        wanted = np.flatnonzero(bits)
        other = (self.hashes_of(pages, wanted) != self._hashes[block][first + wanted]).any(axis=1)
        found = np.zeros(len(bits), np.uint8)
        found[wanted] = other
        return found

    def forget(self, block: int, first: int, bits: Bits) -> None:
        """These pages are made holes, or about to be written from RAM itself: there is nothing to compare them with.

        Args:
            block: number of the block.
            first: number of the first page.
            bits: which of the pages from there on.
        """
        self._held[block].put_bits(first // WORD_PAGES, self.held(block, first, len(bits)) & ~bits)

    def distrust(self, data: Sequence[PageBitmap], present: Sequence[PageBitmap]) -> None:
        """Pages changed while they were written as if they could not: whatever is not held may be in the file.

        Args:
            data: pages that may hold something, one bitmap a block.
            present: which pages are in the file; all those of which that is not certain are added.
        """
        for held, may_hold, in_file in zip(self._held, data, present, strict=True):
            in_file.words |= may_hold.words & ~held.words

    def write_digests(self, channel: Channel, tables: NDArray[np.uint64], present: Sequence[PageBitmap]) -> None:
        """Write the digests of all pages that are in the file.

        Args:
            channel: the file.
            tables: where the digest of page 0 of each block goes.
            present: which pages are in the file.
        """
        for table, digests, bitmap in zip(tables.tolist(), self.digests, present, strict=True):
            for word in range(0, len(bitmap.words), _STEP_WORDS):
                first, bits = word * WORD_PAGES, bitmap.bits(word, _STEP_WORDS)
                write_digests(channel, table, first, digests[first : first + len(bits)], bits)


class PrecopyJob:
    """Writes the pages of a shard while the guest changes them.

    Args:
        blocks: where the pages of each block go.
        sources: where they come from, in the same order.
        bitmaps: what may be read, and what is in the file afterwards.
        staging: where pages are copied and written from.
        known: gets hash and digest of what is written.
        max_gap_pages: how many pages may be written along to join two writes into one.
        window_pages: how many pages are copied and then written at a time.
        keep_zero_pages: one a block, whether its zero pages are written like others.
    """

    def __init__(
        self,
        blocks: Sequence[SavedBlock],
        sources: Sequence[PageSource],
        bitmaps: SharedBitmaps,
        staging: Staging,
        known: KnownPages,
        *,
        max_gap_pages: int,
        window_pages: int,
        keep_zero_pages: Sequence[bool],
    ) -> None:
        self._blocks = blocks
        self._sources = sources
        self._bitmaps = bitmaps
        self._staging = staging
        self._known = known
        self._max_gap_pages = max_gap_pages
        self._window_pages = window_pages
        self._keep_zero_pages = keep_zero_pages

    def open(self) -> None:
        """Map guest RAM, get room for copies (Job.open)."""
        for source in self._sources:
            source.open()
        self._staging.open()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run)."""
        tally = Tally()
        data = self._bitmaps.data[shard.block].bits(shard.first_word, shard.words)
        present = np.zeros(len(data), np.uint8)
        first_page = shard.first_word * WORD_PAGES
        for start in range(0, len(data), self._window_pages):
            window = slice(start, start + self._window_pages)
            if data[window].any():
                present[window] = self._write_window(shard.block, first_page + start, data[window], tally)
        started = time.perf_counter()
        self._staging.settle()
        tally.write_seconds += time.perf_counter() - started
        self._bitmaps.file[shard.block].put_bits(shard.first_word, present)
        return tally

    def _write_window(self, block: int, first: int, data: Bits, tally: Tally) -> Bits:
        """Begin to write a window; returns which of its pages are in the file when that is done."""
        saved, clock = self._blocks[block], time.perf_counter
        started = clock()
        channel = self._staging.next_channel()
        waited = clock()
        pages = self._sources[block].pages(first, len(data), data)
        store = data if self._keep_zero_pages[block] else nonzero_among(pages, data, data)
        held = self._known.held(block, first, len(data))
        if not store.any() and not held.any():
            tally.zero_pages += int(np.count_nonzero(data))
            tally.scan_seconds += clock() - waited
            return store
        spans = covered(merge_runs(runs_of_ones(store), self._max_gap_pages), len(data))
        copy = self._staging.copy(pages, store, spans & (store == 0))
        if not self._keep_zero_pages[block]:
            store = nonzero_among(copy, store, store)  # what is zero in the meantime is left out
        runs = merge_runs(runs_of_ones(store), self._max_gap_pages)
        scanned = clock()
        lost = held & (store == 0)  # written by a worker that died, and zero by now
        # before the write: a page whose worker dies in between must not look as if the file had nothing of it
        self._known.note(block, first, copy, store)
        hashed = clock()
        channel.write_runs(saved.page_offset(first), copy, runs, np.ones(len(data), np.uint8))
        written = clock()
        stored_pages = np.flatnonzero(store)
        self._known.digests[block][first + stored_pages] = page_digests(copy, store)[stored_pages]
        for start, count in runs_of_ones(lost).tolist():
            channel.settle()
            channel.punch(saved.page_offset(first + start), count * saved.block.page_size)
        self._known.digests[block][first + np.flatnonzero(lost)] = 0
        self._known.forget(block, first, lost)  # only now: this worker may die, too
        stored, moved = len(stored_pages), int(runs[:, 1].sum())
        tally.written_pages += stored
        tally.gap_pages += moved - stored
        tally.zero_pages += int(np.count_nonzero(data)) - stored
        tally.bytes += moved * saved.block.page_size
        tally.scan_seconds += scanned - waited
        tally.write_seconds += waited - started + written - hashed
        tally.digest_seconds += hashed - scanned + clock() - written
        return store
