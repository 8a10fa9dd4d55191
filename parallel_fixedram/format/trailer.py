"""The trailer: what our files have after the stream, where QEMU never reads.

::

    stream | zeros to a multiple of 4096 | part* | footer
    part   := type:be32 flags:be32 length:be64 payload[length]
    footer := magic[8] version:be32 parts:be32 base:be64 trailer_offset:be64 file_length:be64 digest:be64     (48 bytes)

    STREAM_DIGESTS  { offset:be64 length:be64 digest:be64 }*    every byte before the trailer that is not a page, and
                                                                the clone stream
    PAGE_DIGESTS    block:be32 zero:be32 { digest:le64 }*       one digest per page of one block; 0 for a zero page
    CLONE_STREAM    a second mapped-ram stream, with the same device sections but without main memory: see below
    HEAD_DIGESTS    { offset:be64 length:be64 digest:be64 }*    what a container has before the stream. It may be
                                                                edited, so a mismatch here says nothing of the rest
    DISKS           the disks that belong to the saved instant, as JSON (core/disks.py)
    PADDING         zeros

A QEMU whose main memory is mapped from the page arrays loads the clone stream, and runs milliseconds later. The small
blocks have page arrays of their own in the clone stream, at multiples of 4096.

Every digest is XXH3-64. A page's digest has a fixed place like the page itself: digests need no index, zero pages leave
holes in the table, and a flipped byte is traced to its page. The digest in the footer covers the trailer up to
itself. ``file_length`` is a multiple of 4096. A reader skips part types it does not know, unless REQUIRED is set.

Volumes and tapes may append zeros to a file. The footer is found all the same: it has the last byte that is not zero,
and ends at a multiple of 4096.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from parallel_fixedram.core.disks import Disk, pack_disks
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.units import align_up
from parallel_fixedram.format.mapped_ram import MAX_BLOCKS, SavedBlock

MAGIC = b"FIXEDRAM"
VERSION = 1
ALIGNMENT = 4096
"""The trailer starts, and the file ends, at a multiple of this many bytes."""

REQUIRED = 0x1
"""Part flag: a reader that does not know the type must refuse the file."""

DIGEST_BYTES = 8
MAX_PARTS = 2 * MAX_BLOCKS
MAX_DISKS_BYTES = 1 << 20

PART = struct.Struct(">IIQ")
TABLE = struct.Struct(">II")
EXTENT = struct.Struct(">QQQ")
FOOTER = struct.Struct(">8sIIQQQ")
FOOTER_BYTES = FOOTER.size + DIGEST_BYTES


class PartType(IntEnum):
    """What a part holds."""

    PADDING = 0
    STREAM_DIGESTS = 1
    PAGE_DIGESTS = 2
    CLONE_STREAM = 3
    DISKS = 4
    HEAD_DIGESTS = 5


@dataclass(frozen=True, slots=True)
class Extent:
    """The digest of the bytes from ``offset`` to ``offset + length`` (exclusive) of a file."""

    offset: int
    length: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailerLayout:
    """Where the parts of a trailer are; offsets are absolute file offsets."""

    base: int
    """Where the stream starts."""
    offset: int
    """Where the trailer starts."""
    extents_offset: int
    """First entry of STREAM_DIGESTS."""
    head_offset: int
    """First entry of HEAD_DIGESTS."""
    head: tuple[tuple[int, int], ...]
    """The byte ranges before the stream that have digests."""
    tables: tuple[int, ...]
    """For each block, in the stream's order, where the digest of page 0 is."""
    clone_offset: int
    """Where the clone stream starts; 0 if there is none."""
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
        disks: Sequence[Disk] = (),
        head: Sequence[tuple[int, int]] = (),
    ) -> TrailerLayout:
        """Lay out the trailer of a file.

        Args:
            base: where the stream starts.
            stream_end: where it ends.
            blocks: all of the stream's RAMBlocks, in its order.
            clone_end: given where the clone stream starts, where it ends; None for a file without a clone stream.
            disks: those that belong to the saved instant.
            head: the byte ranges of a container before the stream: none, or all of [0, base).
        """
        offset = align_up(stream_end, ALIGNMENT)
        parts = _Parts(offset)
        extents_offset = parts.add(PartType.STREAM_DIGESTS, (len(blocks) + 1 + bool(clone_end)) * EXTENT.size)
        tables = tuple(
            parts.add(PartType.PAGE_DIGESTS, TABLE.size + block.pages * DIGEST_BYTES, TABLE.pack(index, 0)) + TABLE.size
            for index, block in enumerate(blocks)
        )
        clone_offset = end = 0
        if clone_end:
            clone_offset = parts.end + PART.size
            end = clone_end(clone_offset)
            parts.add(PartType.CLONE_STREAM, end - clone_offset)
        if disks:
            parts.add(PartType.DISKS, len(listed := pack_disks(disks)), listed)
        head_offset = parts.add(PartType.HEAD_DIGESTS, len(head) * EXTENT.size) if head else 0
        file_length = align_up(parts.end + PART.size + FOOTER_BYTES, ALIGNMENT)
        parts.add(PartType.PADDING, file_length - FOOTER_BYTES - parts.end - PART.size)
        return cls(
            base=base,
            offset=offset,
            extents_offset=extents_offset,
            head_offset=head_offset,
            head=tuple(head),
            tables=tables,
            clone_offset=clone_offset,
            clone_end=end,
            parts=tuple(parts.written),
            footer_offset=file_length - FOOTER_BYTES,
            file_length=file_length,
        )

    def pack_footer(self) -> bytes:
        """The footer without its digest."""
        return FOOTER.pack(MAGIC, VERSION, len(self.parts), self.base, self.offset, self.file_length)


class _Parts:
    """Parts laid out one after the other.

    Attributes:
        end: the offset after the last one.
        written: the bytes of each that are known already, as (offset, bytes).
    """

    def __init__(self, start: int) -> None:
        self.end = start
        self.written: list[tuple[int, bytes]] = []

    def add(self, kind: PartType, length: int, begins: bytes = b"") -> int:
        """Add a part whose payload begins with ``begins``; the rest comes later. Returns the offset of the payload."""
        self.written.append((self.end, PART.pack(kind, 0, length) + begins))
        at = self.end + PART.size
        self.end = at + length
        return at


def pack_extents(extents: list[Extent]) -> bytes:
    """The payload of STREAM_DIGESTS, and of HEAD_DIGESTS."""
    return b"".join(EXTENT.pack(extent.offset, extent.length, extent.digest) for extent in extents)


def uncovered(blocks: list[SavedBlock], start: int, end: int) -> list[tuple[int, int]]:
    """The byte ranges of [start, end) outside page arrays: heads, bitmaps, gaps, device sections."""
    ranges = []
    for saved in sorted((b for b in blocks if not b.absent), key=lambda b: b.header.pages_offset):
        ranges.append((start, saved.header.pages_offset))
        start = saved.pages_end
    ranges.append((start, end))
    return [(first, after) for first, after in ranges if first < after]


def digested(blocks: list[SavedBlock], start: int, end: int, clone: tuple[int, int]) -> list[tuple[int, int]]:
    """The byte ranges that STREAM_DIGESTS covers: all outside page arrays, and the clone stream if there is one."""
    return [*uncovered(blocks, start, end), *([clone] if clone[0] else [])]
