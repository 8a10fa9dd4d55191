"""Read a trailer from a file; nothing in it is trusted."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel_fixedram.core.disks import Disk, unpack_disks
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format.mapped_ram import MAX_BLOCKS, SavedBlock
from parallel_fixedram.format.stream import Cursor, ReadAt
from parallel_fixedram.format.trailer import (
    ALIGNMENT,
    DIGEST_BYTES,
    EXTENT,
    FOOTER,
    FOOTER_BYTES,
    MAGIC,
    MAX_DISKS_BYTES,
    MAX_PARTS,
    PART,
    REQUIRED,
    TABLE,
    VERSION,
    Extent,
    PartType,
    digested,
)

_SCAN_FIRST = 1 << 12
_SCAN_CHUNK = 1 << 20


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
    head: tuple[Extent, ...]
    """Digests of what a container has before the stream; none without a container."""
    tables: dict[int, int]
    """Block number in the stream's order -> file offset of its table of page digests."""
    table_pages: dict[int, int]
    """Block number -> number of pages in its table."""
    clone_offset: int
    """Where the clone stream starts, absolute; 0 if there is none."""
    clone_end: int
    """The offset after it; 0 if there is none."""
    disks: tuple[Disk, ...]
    """Disks that belong to the saved instant; none if the file records none."""


def content_end(read: ReadAt, size: int) -> int:
    """The offset after the last byte that is not zero; 0 if all are zero. Reads backwards, no byte twice.

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
    """Read the trailer that ends the first ``size`` bytes of a file; digests are not checked here.

    Raises:
        FormatError: the footer contradicts the file or the parts.
    """
    footer_offset = size - FOOTER_BYTES
    footer = Cursor(read, size, footer_offset)
    _, version, parts, base, offset, length = FOOTER.unpack(footer.take(FOOTER.size, "footer of the trailer"))
    if version != VERSION:
        raise FormatError(f"trailer version {version}, expected {VERSION}", offset=footer_offset + 8)
    if length != size:
        raise FormatError(f"the trailer says the file has {length:#x} bytes; it has {size:#x}", offset=footer_offset)
    if not base <= offset <= footer_offset or offset % ALIGNMENT or length % ALIGNMENT or parts > MAX_PARTS:
        raise FormatError("the footer of the trailer contradicts itself", offset=footer_offset)
    found = _Found()
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
        head=found.head,
        tables=found.tables,
        table_pages=found.table_pages,
        clone_offset=found.clone_offset,
        clone_end=found.clone_end,
        disks=found.disks,
    )


@dataclass(slots=True)
class _Found:
    """What the parts read so far contain; the fields are those of Trailer."""

    extents: tuple[Extent, ...] = ()
    head: tuple[Extent, ...] = ()
    tables: dict[int, int] = field(default_factory=dict)
    table_pages: dict[int, int] = field(default_factory=dict)
    clone_offset: int = 0
    clone_end: int = 0
    disks: tuple[Disk, ...] = ()

    def read_next(self, cursor: Cursor, limit: int) -> None:
        """Read the part at the cursor and move the cursor past it; no part may reach past ``limit``."""
        at = cursor.offset
        kind, flags, payload = PART.unpack(cursor.take(PART.size, "head of a trailer part"))
        end = cursor.offset + payload
        if end > limit:
            raise FormatError(f"trailer part of {payload:#x} bytes reaches past the trailer", offset=at)
        if kind == PartType.STREAM_DIGESTS:
            if self.extents:
                raise FormatError("a second table of stream digests", offset=at)
            self.extents = _read_extents(cursor, payload)
        elif kind == PartType.HEAD_DIGESTS:
            if self.head:
                raise FormatError("a second table of head digests", offset=at)
            self.head = _read_extents(cursor, payload)
        elif kind == PartType.PAGE_DIGESTS:
            block = _read_table_head(cursor, payload, self.tables)
            self.tables[block] = cursor.offset
            self.table_pages[block] = (payload - TABLE.size) // DIGEST_BYTES
        elif kind == PartType.CLONE_STREAM:
            if self.clone_offset:
                raise FormatError("a second clone stream", offset=at)
            self.clone_offset, self.clone_end = cursor.offset, end
        elif kind == PartType.DISKS:
            if self.disks:
                raise FormatError("a second list of disks", offset=at)
            self.disks = _read_disks(cursor, payload)
        elif kind != PartType.PADDING and flags & REQUIRED:
            raise FormatError(f"trailer part of unknown type {kind} that a reader must know", offset=at)
        cursor.offset = end


def _read_extents(cursor: Cursor, payload: int) -> tuple[Extent, ...]:
    count, rest = divmod(payload, EXTENT.size)
    if rest or count > MAX_BLOCKS + 2:
        raise FormatError(f"table of stream digests of {payload} bytes", offset=cursor.offset)
    return tuple(Extent(*EXTENT.unpack(cursor.take(EXTENT.size, "stream digests"))) for _ in range(count))


def _read_disks(cursor: Cursor, payload: int) -> tuple[Disk, ...]:
    at = cursor.offset
    if payload > MAX_DISKS_BYTES:
        raise FormatError(f"list of disks of {payload} bytes", offset=at)
    try:
        return unpack_disks(cursor.take(payload, "list of disks"))
    except (ValueError, RecursionError):
        raise FormatError("the list of disks is not JSON of the expected form", offset=at) from None


def _read_table_head(cursor: Cursor, payload: int, tables: dict[int, int]) -> int:
    at = cursor.offset
    if payload < TABLE.size or (payload - TABLE.size) % DIGEST_BYTES:
        raise FormatError(f"table of page digests of {payload} bytes", offset=at)
    block, _ = TABLE.unpack(cursor.take(TABLE.size, "head of a table of page digests"))
    if block in tables or block >= MAX_BLOCKS:
        raise FormatError(f"table of page digests for block number {block}", offset=at)
    return int(block)


def check_against(trailer: Trailer, blocks: list[SavedBlock], base: int, stream_end: int) -> None:
    """Check a trailer against the stream before it.

    Raises:
        FormatError: it describes another stream: the start or the blocks differ, or bytes lack a digest.
    """
    at = trailer.offset
    if trailer.base != base:
        raise FormatError(f"the trailer is for a stream at {trailer.base:#x}, but this one is at {base:#x}", offset=at)
    if not stream_end <= at < stream_end + ALIGNMENT:
        raise FormatError(f"the trailer does not follow the stream, which ends at {stream_end:#x}", offset=at)
    if trailer.table_pages != {index: saved.block.pages for index, saved in enumerate(blocks) if not saved.absent}:
        raise FormatError("the trailer's page digests do not match the RAMBlocks of the stream", offset=at)
    expected = digested(blocks, base, at, (trailer.clone_offset, trailer.clone_end))
    if [(e.offset, e.offset + e.length) for e in trailer.extents] != expected:
        raise FormatError("the trailer's stream digests do not cover the stream", offset=at)
    ends = [0, *(e.offset + e.length for e in trailer.head)]
    if trailer.head and ([e.offset for e in trailer.head] != ends[:-1] or ends[-1] != base):
        raise FormatError("the trailer's head digests do not cover what precedes the stream", offset=at)
