"""CaptureJob: a worker's part of a snapshot: it writes protected guest RAM to the file.

A worker copies a window first, and checks the marks afterwards. It drops the groups that the handler has released
meanwhile: its copy may be too new, and the ring has the right one. The rest is RAM at T, which is written except for
zero pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, runs_of_ones
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.capture.snapshot.marks import Marks
from parallel_fixedram.engine.capture.snapshot.places import Origin, Target
from parallel_fixedram.engine.capture.snapshot.protocol import Step, capture, untouched
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.pages.window import covered, merge_runs, nonzero_among
from parallel_fixedram.engine.workers.messages import Tally


class CaptureJob:
    """Writes the pages of a shard as they were at T, while the guest changes them.

    Args:
        origin: where they come from.
        target: where they go.
        marks: of all groups.
        staging: where they are copied to, and written from.
        window_pages: number of pages that are copied and written at a time, a multiple of 64.
    """

    def __init__(self, origin: Origin, target: Target, marks: Marks, staging: Staging, *, window_pages: int) -> None:
        self._origin = origin
        self._target = target
        self._marks = marks
        self._staging = staging
        self._window_words = window_pages // WORD_PAGES

    def open(self) -> None:
        """Map guest RAM, and allocate room for copies (Job.open)."""
        for source in self._origin.sources:
            source.open()
        self._staging.open()

    def run(self, shard: Shard) -> Tally:
        """Write one shard (Job.run).

        Raises:
            HostError: the snapshot is void; or a page cannot be read or written.
        """
        tally, data = Tally(), self._origin.data[shard.block]
        begun: dict[int, Iterator[Step]] = {}  # by the id of the channel that has to settle before they go on
        end = shard.first_word + shard.words
        for word in range(shard.first_word, end, self._window_words):
            words = min(self._window_words, end - word)
            if data.words[word : word + words].any():
                self._marks.check()
                channel = self._settled_channel(tally)
                _finish(begun.pop(id(channel), None))
                window = _Window(self, channel, shard.block, word, words, tally)
                begun[id(channel)] = window.begin()
        started = time.perf_counter()
        self._staging.settle()
        tally.write_seconds += time.perf_counter() - started
        tally.write_bins = self._staging.write_bins()
        for steps in begun.values():
            _finish(steps)
        return tally

    def _settled_channel(self, tally: Tally) -> Channel:
        started = time.perf_counter()
        channel = self._staging.next_channel()
        tally.write_seconds += time.perf_counter() - started
        return channel


def _finish(steps: Iterator[Step] | None) -> None:
    """Go on with steps whose writes have settled."""
    for _ in steps or ():
        pass


class _Window:
    """A few groups of one block on their way to the file."""

    def __init__(self, job: CaptureJob, channel: Channel, block: int, word: int, words: int, tally: Tally) -> None:
        self._origin, self._target, self._staging = job._origin, job._target, job._staging
        self._marks = job._marks
        self._channel = channel
        self._block = block
        self._word = word
        first = job._origin.groups.firsts[block] + word
        self._groups = slice(first, first + words)
        self._data = job._origin.data[block].bits(word, words)
        self._tally = tally

    def begin(self) -> Iterator[Step]:
        """Copy, look, and begin to write; returns the steps to do when the channel has settled."""
        steps = capture(self._marks, self._groups, copy=self._copy, write=self._write, publish=self._publish)
        for step in steps:
            if step is Step.WRITTEN:
                break
        return steps

    def _pages_of(self, groups: Bits) -> Bits:
        return np.repeat(groups, WORD_PAGES)[: len(self._data)]

    def _copy(self) -> None:
        started = time.perf_counter()
        # this only saves work; what counts is the look after the copy
        wanted = self._data & self._pages_of(untouched(self._marks, self._groups))
        pages = self._origin.sources[self._block].pages(self._word * WORD_PAGES, len(wanted), wanted)
        self._copied: Pages = self._staging.copy(pages, wanted, np.zeros(len(wanted), np.uint8))
        self._tally.scan_seconds += time.perf_counter() - started

    def _write(self, mine: Bits) -> None:
        clock, tally, saved = time.perf_counter, self._tally, self._target.blocks[self._block]
        started, copied = clock(), self._copied
        kept = self._data & self._pages_of(mine)
        self._store = kept if self._target.keep_zero_pages[self._block] else nonzero_among(copied, kept, kept)
        own = kept | (self._data == 0)  # pages without data are surely zero; all others belong to somebody else
        runs = merge_runs(runs_of_ones(self._store), self._target.max_gap_pages, own)
        for start, count in runs_of_ones(covered(runs, len(own)) & (self._data == 0)).tolist():
            copied[start : start + count] = 0
        scanned = clock()
        if len(runs):
            offset = saved.page_offset(self._word * WORD_PAGES)
            self._channel.write_runs(offset, copied, runs, np.ones(len(own), np.uint8))
        written = clock()
        self._digests = page_digests(copied, self._store)
        stored, moved = int(np.count_nonzero(self._store)), int(runs[:, 1].sum())
        tally.written_pages += stored
        tally.gap_pages += moved - stored
        tally.zero_pages += int(np.count_nonzero(kept)) - stored
        tally.bytes += moved * saved.block.page_size
        tally.scan_seconds += scanned - started
        tally.write_seconds += written - scanned
        tally.digest_seconds += clock() - written

    def _publish(self, mine: Bits) -> None:
        present, pages = self._target.present[self._block], self._pages_of(mine)
        before = present.bits(self._word, len(mine))
        present.put_bits(self._word, np.where(pages, self._store, before))
        stored = np.flatnonzero(self._store)
        self._target.digests[self._block][self._word * WORD_PAGES + stored] = self._digests[stored]
