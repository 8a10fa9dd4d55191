"""Page digests, and where they come from.

RAM that stands still is hashed by whoever writes it, page by page, and a pre-copy knows its pages already. After a
live save the guest goes on before everything is hashed, so its pages are read back from the file: RAM would be a
moving original.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, PageBitmap, runs_of_ones
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.window import WINDOW_PAGES, WindowReader, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.trailer import DIGEST_BYTES, Extent, TrailerLayout, digested, pack_extents
from parallel_fixedram.host.files.channel import FileChannel, data_extents

_RANGE_PIECE = 1 << 20


def page_digests(pages: Pages, bits: Bits) -> NDArray[np.uint64]:
    """XXH3-64 of every page whose bit is 1, and 0 for the others, shape (pages,)."""
    digest, view, size = xxhash.xxh3_64_intdigest, pages.data.cast("B"), pages.shape[1] * 8
    found = np.zeros(len(bits), np.uint64)
    present = np.flatnonzero(bits)
    found[present] = [digest(view[start : start + size]) for start in (present * size).tolist()]
    return found


def write_digests(channel: Channel, table: int, first: int, digests: NDArray[np.uint64], present: Bits) -> None:
    """Write digests to their places in a table.

    One call for every stretch with digests in it: a buffered write keeps direct ones of other workers waiting.

    Args:
        channel: the file.
        table: file offset of the digest of page 0.
        first: the page that ``digests`` begin with.
        digests: shape (pages,), 0 for pages that are not in the file.
        present: 1 for every page that is; memory of digests far from those is not touched.
    """
    stored = digests.astype("<u8", copy=False)
    used = np.add.reduceat(present, np.arange(0, len(present), WINDOW_PAGES), dtype=np.int64)
    for start, count in (runs_of_ones(used) * WINDOW_PAGES).tolist():
        channel.write(table + (first + start) * DIGEST_BYTES, stored[start : start + count].data.cast("B"))


class DigestTable:
    """The page digests of one block, in a file.

    Args:
        channel: the file.
        table: file offset of the digest of page 0.
    """

    def __init__(self, channel: Channel, table: int) -> None:
        self._channel = channel
        self._table = table

    def mismatches(self, first: int, pages: Pages, present: Bits) -> Bits:
        """1 for every present page that does not match its digest, and every absent one that has a digest.

        Args:
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            present: 1 for every page that is in the file.
        """
        stored = np.empty(len(present), "<u8")
        self._channel.read(self._table + first * DIGEST_BYTES, stored.data.cast("B"))
        wrong: Bits = (stored != page_digests(pages, present)).view(np.uint8)
        return wrong


def write_trailer(channel: FileChannel, trailer: TrailerLayout, blocks: Sequence[SavedBlock]) -> None:
    """Write what a trailer says of a stream that is complete, but for the page digests, which are there already."""
    for offset, head in trailer.parts:
        channel.write(offset, memoryview(head))
    extents = [
        Extent(start, end - start, range_digest(channel, start, end))
        for start, end in digested(
            list(blocks), trailer.base, trailer.offset, (trailer.clone_offset, trailer.clone_end)
        )
    ]
    channel.write(trailer.extents_offset, memoryview(pack_extents(extents)))
    channel.write(trailer.footer_offset, memoryview(trailer.pack_footer()))
    end = trailer.file_length - DIGEST_BYTES
    channel.write(end, memoryview(range_digest(channel, trailer.offset, end).to_bytes(DIGEST_BYTES, "big")))


def range_digest(channel: FileChannel, start: int, end: int) -> int:
    """XXH3-64 of the bytes [start, end) of a file, whose holes are known to be zeros without being read.

    Raises:
        FormatError: the file ends before.
    """
    digest = xxhash.xxh3_64()
    channel.read(end - 1, memoryview(bytearray(1)))  # past the end of a file there is a hole, too
    buffer = memoryview(bytearray(min(_RANGE_PIECE, end - start)))
    for first, last in data_extents(channel.fd, start, end):
        _digest_zeros(digest, first - start)
        for start in range(first, last, len(buffer)):
            piece = buffer[: min(len(buffer), last - start)]
            channel.read(start, piece)
            digest.update(piece)
        start = last
    _digest_zeros(digest, end - start)
    return digest.intdigest()


def _digest_zeros(digest: xxhash.xxh3_64, count: int) -> None:
    zeros = bytes(min(_RANGE_PIECE, count))
    for start in range(0, count, _RANGE_PIECE):
        digest.update(zeros[: count - start])


class DigestJob:
    """Fills the table of page digests for the pages of a shard.

    Args:
        blocks: where the pages lie.
        present: which pages are in the file, one bitmap a block.
        tables: where the digest of page 0 of each block goes, in shared memory: known after the fork only, because the
            trailer follows the device sections.
        pages: the channel pages are read from.
        digests: the channel digests are written to; their places are not aligned.
    """

    def __init__(
        self,
        blocks: Sequence[SavedBlock],
        present: Sequence[PageBitmap],
        tables: NDArray[np.uint64],
        *,
        pages: Channel,
        digests: Channel,
    ) -> None:
        self._blocks = blocks
        self._present = present
        self._tables = tables
        self._pages = pages
        self._digests = digests

    def open(self) -> None:
        """Allocate the read buffer (Job.open)."""
        self._reader = WindowReader(self._pages, max(saved.block.page_size for saved in self._blocks))

    def run(self, shard: Shard) -> Tally:
        """Digest one shard (Job.run)."""
        tally = Tally()
        saved = self._blocks[shard.block]
        first_page = shard.first_word * WORD_PAGES
        digests = np.zeros(min(shard.words * WORD_PAGES, saved.block.pages - first_page), np.uint64)
        for window in windows(self._present[shard.block], shard):
            pages = self._reader.read(saved, window, tally)
            started = time.perf_counter()
            place = window.first - first_page
            digests[place : place + len(window.bits)] = page_digests(pages, window.bits)
            tally.digest_seconds += time.perf_counter() - started
        present = self._present[shard.block].bits(shard.first_word, shard.words)
        write_digests(self._digests, int(self._tables[shard.block]), first_page, digests, present)
        return tally
