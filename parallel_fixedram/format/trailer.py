"""The trailer: what our files carry after the stream, where QEMU never reads.

::

    stream | zeros to a multiple of 4096 | part* | footer
    part   := type:be32 flags:be32 length:be64 payload[length]
    footer := magic[8] version:be32 parts:be32 base:be64 trailer_offset:be64 file_length:be64 digest:be64     (48 bytes)

    STREAM_DIGESTS  { offset:be64 length:be64 digest:be64 }*    every byte before the trailer that is not a page, and
                                                                the clone stream
    PAGE_DIGESTS    block:be32 zero:be32 { digest:le64 }*       one digest a page of one block; 0 for a zero page
    CLONE_STREAM    a second mapped-ram stream, with the same device sections but without main memory: see below
    PADDING         zeros

A QEMU whose main memory is mapped from the page arrays loads the clone stream and runs, milliseconds later. Its small
blocks have page arrays of their own there, at multiples of 4096.

Every digest is XXH3-64. A page's digest has a fixed place like the page itself, so workers write digests in parallel, a
zero page costs a hole, and a flipped byte is pinned to its page. The digest in the footer covers the trailer up to
itself. ``file_length`` is a multiple of 4096. A reader skips part types it does not know, unless REQUIRED is set.

Volumes and tapes add zeros to a file: the last byte that is not zero is in the footer, whose end is a multiple of 4096.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.units import align_up
from parallel_fixedram.format.mapped_ram import MAX_BLOCKS, SavedBlock
from parallel_fixedram.format.stream import Cursor, ReadAt

MAGIC = b"FIXEDRAM"
VERSION = 1
ALIGNMENT = 4096
"""The trailer starts at, and the file ends at, a multiple of this many bytes."""

REQUIRED = 0x1
"""Part flag: a reader that does not know the type must refuse the file."""

DIGEST_BYTES = 8
MAX_PARTS = 2 * MAX_BLOCKS

_SCAN_FIRST = 1 << 12
_SCAN_CHUNK = 1 << 20

_PART = struct.Struct(">IIQ")
_TABLE = struct.Struct(">II")
_EXTENT = struct.Struct(">QQQ")
_FOOTER = struct.Struct(">8sIIQQQ")
FOOTER_BYTES = _FOOTER.size + DIGEST_BYTES


class PartType(IntEnum):
    """What a part holds."""

    PADDING = 0
    STREAM_DIGESTS = 1
    PAGE_DIGESTS = 2
    CLONE_STREAM = 3


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes ``offset`` (inclusive) to ``offset + length`` (exclusive) of a file and their digest."""

    offset: int
    length: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailerLayout:
    """Where everything of a trailer lies; offsets are absolute in the file."""

    base: int
    """Where the stream starts."""
    offset: int
    """Where the trailer starts."""
    extents_offset: int
    """First entry of STREAM_DIGESTS."""
    extents: int
    """Number of entries of STREAM_DIGESTS."""
    tables: tuple[int, ...]
    """Per block, in the stream's order, where the digest of page 0 lies."""
    clone_offset: int
    """Where the clone stream starts; 0 where there is none."""
    clone_end: int
    parts: tuple[tuple[int, bytes], ...]
    """Part heads as (offset, bytes)."""
    footer_offset: int
    file_length: int

    @classmethod
    def plan(
        cls,
        *,
        base: int,
        stream_end: int,
        blocks: list[RAMBlock],
        clone_end: Callable[[int], int] | None = None,
    ) -> TrailerLayout:
        """Lay out the trailer of a file.

        Args:
            base: where the stream starts.
            stream_end: where it ends.
            blocks: all of the stream's RAMBlocks, in its order.
            clone_end: where a clone stream ends that starts at the offset given; None for a file without one.
        """
        offset = align_up(stream_end, ALIGNMENT)
        parts: list[tuple[int, bytes]] = []
        extents = len(blocks) + 1 + bool(clone_end)
        position = offset
        parts.append((position, _PART.pack(PartType.STREAM_DIGESTS, 0, extents * _EXTENT.size)))
        extents_offset = position + _PART.size
        position = extents_offset + extents * _EXTENT.size
        tables = []
        for index, block in enumerate(blocks):
            length = _TABLE.size + block.pages * DIGEST_BYTES
            parts.append((position, _PART.pack(PartType.PAGE_DIGESTS, 0, length) + _TABLE.pack(index, 0)))
            tables.append(position + _PART.size + _TABLE.size)
            position += _PART.size + length
        clone_offset = end = 0
        if clone_end:
            clone_offset = position + _PART.size
            end = clone_end(clone_offset)
            parts.append((position, _PART.pack(PartType.CLONE_STREAM, 0, end - clone_offset)))
            position = end
        file_length = align_up(position + _PART.size + FOOTER_BYTES, ALIGNMENT)
        padding = file_length - FOOTER_BYTES - position - _PART.size
        parts.append((position, _PART.pack(PartType.PADDING, 0, padding)))
        return cls(
            base=base,
            offset=offset,
            extents_offset=extents_offset,
            extents=extents,
            tables=tuple(tables),
            clone_offset=clone_offset,
            clone_end=end,
            parts=tuple(parts),
            footer_offset=file_length - FOOTER_BYTES,
            file_length=file_length,
        )

    def pack_footer(self) -> bytes:
        """The footer without its digest."""
        return _FOOTER.pack(MAGIC, VERSION, len(self.parts), self.base, self.offset, self.file_length)


def pack_extents(extents: list[Extent]) -> bytes:
    """The payload of STREAM_DIGESTS."""
    return b"".join(_EXTENT.pack(extent.offset, extent.length, extent.digest) for extent in extents)


def uncovered(blocks: list[SavedBlock], start: int, end: int) -> list[tuple[int, int]]:
    """The byte ranges of [start, end) that are in no page array: heads, bitmaps, gaps, device sections."""
    ranges = []
    for saved in sorted((b for b in blocks if not b.absent), key=lambda b: b.header.pages_offset):
        ranges.append((start, saved.header.pages_offset))
        start = saved.pages_end
    ranges.append((start, end))
    return [(first, after) for first, after in ranges if first < after]


def digested(blocks: list[SavedBlock], start: int, end: int, clone: tuple[int, int]) -> list[tuple[int, int]]:
    """The byte ranges that STREAM_DIGESTS has digests of: what is in no page array, and the clone stream if any."""
    return [*uncovered(blocks, start, end), *([clone] if clone[0] else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """A trailer as found in a file."""

    base: int
    """Where the stream starts, absolute."""
    offset: int
    """Where the trailer starts, absolute."""
    file_length: int
    digest: int
    """XXH3-64 over [offset, file_length - 8)."""
    extents: tuple[Extent, ...]
    """Digests of everything before the trailer that is not a page, and of the clone stream."""
    tables: dict[int, int]
    """Block number in the stream's order -> file offset of its table of page digests."""
    table_pages: dict[int, int]
    """Block number -> number of pages in its table."""
    clone_offset: int
    """Where the clone stream starts, absolute; 0 where there is none."""
    clone_end: int
    """The offset after it; 0 where there is none."""


def content_end(read: ReadAt, size: int) -> int:
    """The offset after the last byte that is not zero; 0 where all are. Reads backwards, no byte twice.

    Raises:
        FormatError: there are fewer than ``size`` bytes.
    """
    end, wanted = size, _SCAN_FIRST
    while end > 0:
        start = max(0, end - wanted)
        data = read(start, end - start)
        if len(data) < end - start:
            raise FormatError(f"the file ends, expected {size:#x} bytes", offset=start + len(data))
        if found := len(data.rstrip(b"\0")):
            return start + found
        end, wanted = start, min(2 * wanted, _SCAN_CHUNK)
    return 0


def has_trailer(read: ReadAt, size: int) -> bool:
    """Whether the first ``size`` bytes of a file end in a footer of ours."""
    return size >= FOOTER_BYTES and read(size - FOOTER_BYTES, len(MAGIC)) == MAGIC


def read_trailer(read: ReadAt, size: int) -> Trailer:
    """Read the trailer of a file that has one in its first ``size`` bytes; its digests are not checked here.

    Raises:
        FormatError: the footer contradicts the file or the parts.
    """
    footer_offset = size - FOOTER_BYTES
    footer = Cursor(read, size, footer_offset)
    _, version, parts, base, offset, length = _FOOTER.unpack(footer.take(_FOOTER.size, "footer of the trailer"))
    if version != VERSION:
        raise FormatError(f"trailer version {version}, expected {VERSION}", offset=footer_offset + 8)
    if length != size:
        raise FormatError(f"the trailer says the file has {length:#x} bytes, it has {size:#x}", offset=footer_offset)
    if not base <= offset <= footer_offset or offset % ALIGNMENT or length % ALIGNMENT or parts > MAX_PARTS:
        raise FormatError("the footer of the trailer contradicts itself", offset=footer_offset)
    found = _Parts()
    cursor = Cursor(read, footer_offset, offset)
    for _ in range(parts):
        found.read_next(cursor, footer_offset)
    if cursor.offset != footer_offset:
        raise FormatError(f"trailer parts end at {cursor.offset:#x}, expected {footer_offset:#x}", offset=footer_offset)
    return Trailer(
        base=base,
        offset=offset,
        file_length=length,
        digest=footer.be64("digest of the trailer"),
        extents=found.extents,
        tables=found.tables,
        table_pages=found.table_pages,
        clone_offset=found.clone_offset,
        clone_end=found.clone_end,
    )


@dataclass(slots=True)
class _Parts:
    """What the parts that have been read so far hold; the fields are those of Trailer."""

    extents: tuple[Extent, ...] = ()
    tables: dict[int, int] = field(default_factory=dict)
    table_pages: dict[int, int] = field(default_factory=dict)
    clone_offset: int = 0
    clone_end: int = 0

    def read_next(self, cursor: Cursor, limit: int) -> None:
        """Read the part at the cursor and move the cursor past it; no part may reach past ``limit``."""
        at = cursor.offset
        kind, flags, payload = _PART.unpack(cursor.take(_PART.size, "head of a trailer part"))
        end = cursor.offset + payload
        if end > limit:
            raise FormatError(f"trailer part of {payload:#x} bytes reaches past the trailer", offset=at)
        if kind == PartType.STREAM_DIGESTS:
            if self.extents:
                raise FormatError("a second table of stream digests", offset=at)
            self.extents = _read_extents(cursor, payload)
        elif kind == PartType.PAGE_DIGESTS:
            block = _read_table_head(cursor, payload, self.tables)
            self.tables[block] = cursor.offset
            self.table_pages[block] = (payload - _TABLE.size) // DIGEST_BYTES
        elif kind == PartType.CLONE_STREAM:
            if self.clone_offset:
                raise FormatError("a second clone stream", offset=at)
            self.clone_offset, self.clone_end = cursor.offset, end
        elif kind != PartType.PADDING and flags & REQUIRED:
            raise FormatError(f"trailer part of unknown type {kind} that a reader must know", offset=at)
        cursor.offset = end


def _read_extents(cursor: Cursor, payload: int) -> tuple[Extent, ...]:
    count, rest = divmod(payload, _EXTENT.size)
    if rest or count > MAX_BLOCKS + 2:
        raise FormatError(f"table of stream digests of {payload} bytes", offset=cursor.offset)
    return tuple(Extent(*_EXTENT.unpack(cursor.take(_EXTENT.size, "stream digests"))) for _ in range(count))


def _read_table_head(cursor: Cursor, payload: int, tables: dict[int, int]) -> int:
    at = cursor.offset
    if payload < _TABLE.size or (payload - _TABLE.size) % DIGEST_BYTES:
        raise FormatError(f"table of page digests of {payload} bytes", offset=at)
    block, _ = _TABLE.unpack(cursor.take(_TABLE.size, "head of a table of page digests"))
    if block in tables or block >= MAX_BLOCKS:
        raise FormatError(f"table of page digests for block number {block}", offset=at)
    return int(block)


def check_against(trailer: Trailer, blocks: list[SavedBlock], base: int, stream_end: int) -> None:
    """Check a trailer against the stream that it follows.

    Raises:
        FormatError: it describes another stream: other start, other blocks, or bytes without a digest.
    """
    at = trailer.offset
    if trailer.base != base:
        raise FormatError(f"the trailer is of a stream at {trailer.base:#x}, this one starts at {base:#x}", offset=at)
    if not stream_end <= at < stream_end + ALIGNMENT:
        raise FormatError(f"the trailer does not follow the stream, which ends at {stream_end:#x}", offset=at)
    if trailer.table_pages != {index: saved.block.pages for index, saved in enumerate(blocks) if not saved.absent}:
        raise FormatError("the trailer's page digests do not match the RAMBlocks of the stream", offset=at)
    expected = digested(blocks, base, at, (trailer.clone_offset, trailer.clone_end))
    if [(e.offset, e.offset + e.length) for e in trailer.extents] != expected:
        raise FormatError("the trailer's stream digests do not cover the stream", offset=at)
