"""Digests: of pages when they are written or read, and of everything else in a file.

In a save, whoever writes a page also notes the digest of the same bytes; the tables are written after all pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, PageBitmap, runs_of_ones
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard
from parallel_fixedram.engine.pages.window import WindowReader, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.trailer import DIGEST_BYTES, Extent, TrailerLayout, digested, pack_extents
from parallel_fixedram.host.files.channel import FileChannel, data_extents

_RANGE_PIECE = 1 << 20
_STEP_WORDS = 1 << 14
"""Words of a bitmap that are unpacked at a time."""


def page_digests(pages: Pages, bits: Bits) -> NDArray[np.uint64]:
    """XXH3-64 of every page whose bit is 1, and 0 for the others, shape (pages,)."""
    digest, view, size = xxhash.xxh3_64_intdigest, pages.data.cast("B"), pages.shape[1] * 8
    found = np.zeros(len(bits), np.uint64)
    present = np.flatnonzero(bits)
    found[present] = [digest(view[start : start + size]) for start in (present * size).tolist()]
    return found


def write_digests(
    channel: Channel,
    tables: Sequence[int],
    digests: Sequence[NDArray[np.uint64]],
    present: Sequence[PageBitmap],
) -> None:
    """Write the digests of all pages that are in the file to their places.

    Args:
        channel: the file.
        tables: file offset of the digest of page 0 of each block.
        digests: shape (pages,) for each block; only read near pages that are present.
        present: pages in the file; the digest of all others is 0.
    """
    for table, values, bitmap in zip(tables, digests, present, strict=True):
        for word in range(0, len(bitmap.words), _STEP_WORDS):
            bits, first = bitmap.bits(word, _STEP_WORDS), word * WORD_PAGES
            # only stretches with pages in them, so that the table of a large, nearly empty block stays a hole
            used = np.add.reduceat(bits, np.arange(0, len(bits), WINDOW_PAGES), dtype=np.int64)
            for start, count in (runs_of_ones(used) * WINDOW_PAGES).tolist():
                some = bits[start : start + count]
                stored = np.where(some, values[first + start : first + start + len(some)], 0).astype("<u8", copy=False)
                channel.write(table + (first + start) * DIGEST_BYTES, stored.data.cast("B"))


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
        """1 for every present page that does not match its digest, and for every absent one that has a digest.

        Args:
            first: number of the first page.
            pages: contents, shape (pages, page_size / 8).
            present: 1 for every page in the file.
        """
        stored = np.empty(len(present), "<u8")
        self._channel.read(self._table + first * DIGEST_BYTES, stored.data.cast("B"))
        wrong: Bits = (stored != page_digests(pages, present)).view(np.uint8)
        return wrong


def write_trailer(channel: FileChannel, trailer: TrailerLayout, blocks: Sequence[SavedBlock]) -> None:
    """Write the trailer of a complete stream, except the page digests, which must be there already, and its footer."""
    for offset, head in trailer.parts:
        channel.write(offset, memoryview(head))
    stream = digested(list(blocks), trailer.base, trailer.offset, (trailer.clone_offset, trailer.clone_end))
    channel.write(trailer.extents_offset, memoryview(pack_extents(_extents(channel, stream))))
    if trailer.head:
        channel.write(trailer.head_offset, memoryview(pack_extents(_extents(channel, trailer.head))))


def write_footer(channel: FileChannel, trailer: TrailerLayout) -> None:
    """Write what makes a trailer one, at once: it is whole, or there is none."""
    footer = trailer.pack_footer()
    digest = range_digest(channel, trailer.offset, trailer.footer_offset, footer)
    channel.write(trailer.footer_offset, memoryview(footer + digest.to_bytes(DIGEST_BYTES, "big")))


def _extents(channel: FileChannel, ranges: Iterable[tuple[int, int]]) -> list[Extent]:
    return [Extent(start, end - start, range_digest(channel, start, end)) for start, end in ranges]


def range_digest(channel: FileChannel, start: int, end: int, more: bytes = b"") -> int:
    """XXH3-64 of the bytes [start, end) of a file, then of ``more``; holes count as zeros without being read.

    Raises:
        FormatError: the file is shorter.
    """
    digest = xxhash.xxh3_64()
    channel.read(end - 1, memoryview(bytearray(1)))  # else bytes past the end of the file would count as a hole
    buffer = memoryview(bytearray(min(_RANGE_PIECE, end - start)))
    for first, last in data_extents(channel.fd, start, end):
        _digest_zeros(digest, first - start)
        for start in range(first, last, len(buffer)):
            piece = buffer[: min(len(buffer), last - start)]
            channel.read(start, piece)
            digest.update(piece)
        start = last
    _digest_zeros(digest, end - start)
    digest.update(more)
    return digest.intdigest()


def _digest_zeros(digest: xxhash.xxh3_64, count: int) -> None:
    zeros = bytes(min(_RANGE_PIECE, count))
    for start in range(0, count, _RANGE_PIECE):
        digest.update(zeros[: count - start])


class DigestJob:
    """Reads back the pages of a shard and notes their digests.

    Args:
        blocks: where the pages are.
        present: pages in the file, a bitmap for each block.
        digests: receives them: shape (pages,) for each block, in shared memory.
        channel: the file.
    """

    def __init__(
        self,
        blocks: Sequence[SavedBlock],
        present: Sequence[PageBitmap],
        digests: Sequence[NDArray[np.uint64]],
        channel: Channel,
    ) -> None:
        self._blocks = blocks
        self._present = present
        self._digests = digests
        self._channel = channel

    def open(self) -> None:
        """Allocate the read buffer (Job.open)."""
        self._reader = WindowReader(self._channel, max(saved.block.page_size for saved in self._blocks))

    def run(self, shard: Shard) -> Tally:
        """Digest one shard (Job.run)."""
        tally, saved = Tally(), self._blocks[shard.block]
        for window in windows(self._present[shard.block], shard):
            pages = self._reader.read(saved, window, tally)
            started = time.perf_counter()
            place = slice(window.first, window.first + len(window.bits))
            self._digests[shard.block][place] = page_digests(pages, window.bits)
            tally.digest_seconds += time.perf_counter() - started
        return tally
