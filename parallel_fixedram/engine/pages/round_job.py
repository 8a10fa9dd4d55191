"""RoundJob: writes the dirty pages of a shard."""

from __future__ import annotations

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.window import pieces
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.engine.workers.messages import Tally


class RoundJob:
    """Writes dirty pages, all of which may contain data (Ledger.leave_out_holes).

    From the second round on, any dirty page may have been written before, by an earlier round or along with its
    neighbours, so the places of zero pages are punched out.

    Args:
        ledger: what to write, and what is in the file afterwards.
        writer: writes pages.
        window_pages: most pages that are tested and written at a time.
        hashes: tell what is in the file already; in the first round, what a worker wrote before it died.
    """

    def __init__(self, ledger: Ledger, writer: PageWriter, *, window_pages: int, hashes: Hashes | None = None) -> None:
        self._ledger = ledger
        self._writer = writer
        self._window_pages = window_pages
        self._hashes = hashes

    def open(self) -> None:
        """Map guest RAM (Job.open)."""
        self._writer.open()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run)."""
        tally, block, in_file = Tally(), shard.block, self._ledger.present[shard.block]
        dirty = self._ledger.dirty[block].bits(shard.first_word, shard.words)
        data = self._ledger.data[block].bits(shard.first_word, shard.words)
        present = in_file.bits(shard.first_word, shard.words)
        for window in pieces(dirty, self._window_pages, joined=self._writer.takes_any_length(block)):
            wanted, first = dirty[window], shard.first_word * WORD_PAGES + window.start
            if shard.round > 0:
                stale = wanted
            elif self._hashes:
                stale = wanted & self._hashes.held(block, first, len(wanted))
            else:
                stale = np.zeros(len(wanted), np.uint8)
            store = self._writer.write(block, first, wanted, data[window], stale, tally)
            present[window] = np.where(wanted, store, present[window])
        self._writer.settle(tally)
        # only now: a bit says that the page is in the file
        in_file.put_bits(shard.first_word, present)
        return tally
