"""ChangedJob: writes the dirty pages of a shard that differ from the file."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.window import nonzero_among, pieces
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.engine.workers.messages import Tally

CHECK_PAGES = 1024
"""Pages that are compared at a time. They need not fit into a cache, because nothing reads them again."""


class ChangedJob:
    """Writes what has changed, once RAM stands still.

    Args:
        guest_blocks: where pages come from.
        ledger: what may have changed, and what is in the file afterwards.
        hashes: of the pages in the file.
        writer: writes pages; it maps guest RAM.
        window_pages: most pages that are written at a time.
    """

    def __init__(
        self,
        guest_blocks: Sequence[GuestBlock],
        ledger: Ledger,
        hashes: Hashes,
        writer: PageWriter,
        *,
        window_pages: int,
    ) -> None:
        self._guest_blocks = guest_blocks
        self._ledger = ledger
        self._hashes = hashes
        self._writer = writer
        self._window_pages = window_pages

    def open(self) -> None:
        """Map guest RAM (Job.open)."""
        self._writer.open()

    def run(self, shard: Shard) -> Tally:
        """Examine one shard, and write what has changed (Job.run)."""
        tally, block, in_file = Tally(), shard.block, self._ledger.present[shard.block]
        data = self._ledger.data[block].bits(shard.first_word, shard.words)
        present = in_file.bits(shard.first_word, shard.words)
        changed = self._changed(shard, data, present, tally)
        for window in pieces(changed, self._window_pages, joined=self._writer.takes_any_length(block)):
            wanted, first = changed[window], shard.first_word * WORD_PAGES + window.start
            store = self._writer.write(block, first, wanted, data[window], wanted, tally)
            present[window] = np.where(wanted, store, present[window])
        self._writer.settle(tally)
        # only now: a bit says that the page is in the file
        in_file.put_bits(shard.first_word, present)
        return tally

    def _changed(self, shard: Shard, data: Bits, present: Bits, tally: Tally) -> Bits:
        """1 for every page of a shard that has to be written, or turned into a hole."""
        started, block, guest = time.perf_counter(), shard.block, self._guest_blocks[shard.block]
        dirty = self._ledger.dirty[block].bits(shard.first_word, shard.words)
        found = np.zeros(len(dirty), np.uint8)
        for start in range(0, len(dirty), CHECK_PAGES):
            part = slice(start, start + CHECK_PAGES)
            wanted = dirty[part]
            if not wanted.any():
                continue
            first = shard.first_word * WORD_PAGES + start
            pages = guest.source.pages(first, len(wanted), wanted & data[part])
            held = wanted & self._hashes.held(block, first, len(wanted))
            suspects = wanted ^ held
            if held.any():
                suspects |= self._hashes.changed(block, first, pages, held)
            full = suspects if guest.keeps_zero_pages else nonzero_among(pages, suspects, data[part])
            found[part] = full | (suspects & present[part])  # a zero page matters only if the file has it
            if found[part].any():
                # before they are written: from then on the file may differ from what was hashed
                self._hashes.forget(block, first, found[part])
        tally.scan_seconds += time.perf_counter() - started
        return found
