"""The RAM section of a mapped-ram stream: one record per block, each with a header that says where its pages are.

::

    START body:  total|MEM_SIZE  { n idstr[n] used_length:be64 [mr->addr:be64] HEADER ... }*  EOS
    HEADER:      version:be32  page_size:be64  bitmap_offset:be64  pages_offset:be64          (28 bytes, packed)
                 |-- bitmap at bitmap_offset --|-- zeros --|-- page array at pages_offset --| next record

Offsets are absolute file offsets. After a header the stream continues at ``pages_offset + used_length``. Page ``i`` is
at ``pages_offset + i * page_size``; its bit is set if it is stored, and clear if it is zero.
Source: QEMU migration/ram.c (MappedRamHeader, mapped_ram_setup_ramblock, parse_ramblocks) and
docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from parallel_fixedram.core.bitmap import bitmap_bytes
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.format.stream import Cursor, pack_counted

RAM_SECTION = "ram"
RAM_VERSION = 4
RAM_SAVE_FLAG_MEM_SIZE = 0x04
RAM_SAVE_FLAG_EOS = 0x10

MAPPED_RAM_HDR_VERSION = 1
MAPPED_RAM_FILE_OFFSET_ALIGNMENT = 0x100000
"""Alignment of ``pages_offset`` in files that QEMU and we write, bytes."""

MAX_BLOCKS = 4096
MAX_USED_LENGTH = 1 << 52
"""Longest block accepted from a file, bytes; larger than any address space QEMU can have."""

_HEADER = struct.Struct(">IQQQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedRamHeader:
    """QEMU's struct of the same name."""

    version: int = MAPPED_RAM_HDR_VERSION
    page_size: int
    """Target page size in bytes."""
    bitmap_offset: int
    """Absolute file offset of the file bitmap."""
    pages_offset: int
    """Absolute file offset of page 0."""

    SIZE = _HEADER.size

    def pack(self) -> bytes:
        """The 28 bytes of the header."""
        return _HEADER.pack(self.version, self.page_size, self.bitmap_offset, self.pages_offset)

    @classmethod
    def unpack(cls, data: bytes) -> MappedRamHeader:
        """The header in 28 bytes; nothing is validated here."""
        version, page_size, bitmap_offset, pages_offset = _HEADER.unpack(data)
        return cls(version=version, page_size=page_size, bitmap_offset=bitmap_offset, pages_offset=pages_offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBlock:
    """A RAMBlock as it is in a file."""

    block: RAMBlock
    header: MappedRamHeader
    record_offset: int
    """Absolute file offset of the record, which begins with the length of the idstr."""
    address: int | None = None
    """mr->addr in bytes; None if the stream does not record it."""

    @property
    def absent(self) -> bool:
        """Whether the block is named but not stored (QEMU >= 11.0, x-ignore-shared): both offsets are 0."""
        return self.address is not None and self.header.bitmap_offset == 0 == self.header.pages_offset

    @property
    def header_offset(self) -> int:
        """Absolute file offset of the header."""
        return self.record_offset + 1 + len(self.block.idstr) + 8 + (8 if self.address is not None else 0)

    @property
    def bitmap_end(self) -> int:
        """File offset after the file bitmap."""
        return self.header.bitmap_offset + bitmap_bytes(self.block.pages)

    @property
    def pages_end(self) -> int:
        """File offset after the page array."""
        return self.header.pages_offset + self.block.used_length

    @property
    def next_offset(self) -> int:
        """File offset where the stream continues after this block."""
        return self.header_offset + MappedRamHeader.SIZE if self.absent else self.pages_end

    def page_offset(self, page: int) -> int:
        """File offset of a page: the fixed place that this package is about."""
        return self.header.pages_offset + page * self.block.page_size

    def page_at(self, offset: int) -> int:
        """The page that the byte at ``offset`` belongs to."""
        return (offset - self.header.pages_offset) // self.block.page_size


def pack_record(block: RAMBlock, header: MappedRamHeader) -> bytes:
    """A block's record with its header, which come before the bitmap."""
    return pack_counted(block.idstr) + struct.pack(">Q", block.used_length) + header.pack()


def pack_word(address: int, flags: int) -> bytes:
    """A RAM stream word."""
    return struct.pack(">Q", address | flags)


def read_start(cursor: Cursor, *, start: int, page_size: int, has_address: bool, file_size: int) -> list[SavedBlock]:
    """Read the body of a ``ram`` START section, up to and including its EOS word.

    Args:
        cursor: at the first word of the body.
        start: where the stream starts; nothing that a record points to may lie between here and the first record.
        page_size: target page size in bytes that every header must have.
        has_address: whether each record has mr->addr (x-ignore-shared is on).
        file_size: bytes in the file; every bitmap and page array must lie within them.

    Raises:
        FormatError: the section violates the grammar, reaches past the file, or its blocks contradict each other.
    """
    at = cursor.offset
    word = cursor.be64("total RAM size")
    total, flags = word & ~(page_size - 1), word & (page_size - 1)
    if flags != RAM_SAVE_FLAG_MEM_SIZE:
        raise FormatError(f"unexpected RAM flags {flags:#x}, expected MEM_SIZE (0x4)", offset=at)
    blocks: list[SavedBlock] = []
    names: set[str] = set()
    while total:
        if len(blocks) == MAX_BLOCKS:
            raise FormatError(f"more than {MAX_BLOCKS} RAMBlocks", offset=cursor.offset)
        saved = _read_record(cursor, page_size, has_address, file_size)
        block = saved.block
        if block.idstr in names:
            raise FormatError(f"two blocks are named {block.idstr!r}", offset=saved.record_offset)
        if block.used_length > total:
            raise FormatError(
                f"block {block.idstr!r}: used_length {block.used_length:#x} exceeds the {total:#x} left of the total",
                offset=saved.record_offset,
            )
        names.add(block.idstr)
        blocks.append(saved)
        total -= block.used_length
    read_words(cursor, page_size)
    check_overlaps(blocks, start, cursor.offset)
    return blocks


def read_words(cursor: Cursor, page_size: int) -> None:
    """Read RAM words up to and including EOS; only empty MEM_SIZE words may come before it.

    Raises:
        FormatError: any other word: in a mapped-ram file the stream itself never contains pages.
    """
    while True:
        at = cursor.offset
        word = cursor.be64("RAM words")
        if word & (page_size - 1) == RAM_SAVE_FLAG_EOS:
            return
        if word != RAM_SAVE_FLAG_MEM_SIZE:
            raise FormatError(f"unexpected RAM flags {word & (page_size - 1):#x}, expected EOS (0x10)", offset=at)


def _read_record(cursor: Cursor, page_size: int, has_address: bool, file_size: int) -> SavedBlock:
    at = cursor.offset
    idstr = cursor.counted_text("block name")
    used_length = cursor.be64(f"used_length of block {idstr!r}")
    address = cursor.be64(f"address of block {idstr!r}") if has_address else None
    header_offset = cursor.offset
    header = MappedRamHeader.unpack(cursor.take(MappedRamHeader.SIZE, f"mapped-ram header of block {idstr!r}"))
    if not idstr:
        raise FormatError("block name is empty", offset=at)
    if not 0 < used_length <= MAX_USED_LENGTH or used_length % page_size:
        raise FormatError(
            f"block {idstr!r}: used_length {used_length:#x}, expected a positive multiple of the page size {page_size} "
            f"and at most {MAX_USED_LENGTH:#x}",
            offset=at,
        )
    if header.version > MAPPED_RAM_HDR_VERSION:
        raise FormatError(
            f"block {idstr!r}: mapped-ram header version {header.version}, expected <= {MAPPED_RAM_HDR_VERSION}",
            offset=header_offset,
        )
    if header.page_size != page_size:
        raise _wrong_page_size(cursor, header_offset, idstr, header, page_size)
    block = RAMBlock(idstr=idstr, used_length=used_length, page_size=page_size, host_page_size=page_size)
    saved = SavedBlock(block=block, header=header, record_offset=at, address=address)
    if saved.absent:
        return saved
    _check_places(saved, header_offset, file_size)
    cursor.offset = saved.pages_end
    return saved


def _wrong_page_size(cursor: Cursor, at: int, idstr: str, header: MappedRamHeader, page_size: int) -> FormatError:
    """Say why this is not a valid header.

    With postcopy-ram a source writes the host page size of huge memory first, which no QEMU expects in a mapped-ram
    stream (ram_save_setup() and parse_ramblock(), migration/ram.c).
    """
    behind = cursor.read_at(at + 8, MappedRamHeader.SIZE)
    if len(behind) == MappedRamHeader.SIZE and MappedRamHeader.unpack(behind).page_size == page_size:
        why = "a host page size comes before its header: saved with postcopy-ram, which no QEMU loads"
        return FormatError(f"block {idstr!r}: {why}", offset=at)
    return FormatError(f"block {idstr!r}: page size {header.page_size}, expected {page_size}", offset=at + 4)


def _check_places(saved: SavedBlock, header_offset: int, file_size: int) -> None:
    idstr, header = saved.block.idstr, saved.header
    if header.pages_offset % saved.block.page_size:
        raise FormatError(
            f"block {idstr!r}: pages_offset {header.pages_offset:#x} is not a multiple of the page size",
            offset=header_offset + 20,
        )
    for what, end in (("bitmap", saved.bitmap_end), ("page array", saved.pages_end)):
        if end > file_size:
            raise FormatError(
                f"block {idstr!r}: its {what} ends at {end:#x}, past the end of the file at {file_size:#x}",
                offset=header_offset,
            )


def check_overlaps(blocks: list[SavedBlock], start: int, end: int) -> None:
    """Check that blocks share no byte with each other or with the stream around them.

    Args:
        blocks: in the stream's order.
        start: where the stream starts.
        end: how far it has been read.

    Raises:
        FormatError: two of them overlap.
    """
    if not blocks:
        return
    places = [
        (start, blocks[0].record_offset, "head of the stream"),
        (blocks[-1].next_offset, end, "stream after the last block"),
    ]
    for saved in blocks:
        name = repr(saved.block.idstr)
        places.append((saved.record_offset, saved.header_offset + MappedRamHeader.SIZE, f"record of block {name}"))
        if not saved.absent:
            places.append((saved.header.bitmap_offset, saved.bitmap_end, f"bitmap of block {name}"))
            places.append((saved.header.pages_offset, saved.pages_end, f"page array of block {name}"))
    places.sort()
    for (_, place_end, what), (place, _, other) in pairwise(places):
        if place < place_end:
            raise FormatError(f"the {other} begins inside the {what}", offset=place)
