"""Read the structure of a mapped-ram file: configuration, RAMBlocks, device sections, trailer.

Accepts what QEMU 9.0 to 11.1 and this package write, and raises FormatError for everything else. No page or bitmap is
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.profiles import FIXED_RAM, MAPPED_RAM
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.units import align_up
from parallel_fixedram.format import mapped_ram, stream, trailer_reader, vmdesc
from parallel_fixedram.format.device_sections import RAM_SECTION_ID, DeviceSection
from parallel_fixedram.format.libvirt_image import LibvirtHeader, is_libvirt_image, read_libvirt_header
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.sections import Walk
from parallel_fixedram.format.stream import Configuration, Cursor, ReadAt
from parallel_fixedram.format.trailer import ALIGNMENT
from parallel_fixedram.format.trailer_reader import Trailer

TRAILER_KEY = "parallel-fixedram"
"""Key in the VM description of our files. It announces the trailer, so that a file cut off before the trailer is
recognised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationFile:
    """The structure of a file; offsets are absolute, in bytes."""

    base: int
    """Where the stream starts."""
    size: int
    """Bytes in the file."""
    configuration: Configuration
    libvirt: LibvirtHeader | None
    """What precedes the stream in a libvirt save image; None in any other file."""
    page_size: int
    blocks: tuple[SavedBlock, ...]
    devices: tuple[DeviceSection, ...]
    ram_ended: bool
    """Whether there is a ``ram`` END section, which is written right after the bitmaps."""
    has_vmdesc: bool
    stream_end: int
    """The offset after end mark and VM description."""
    trailer: Trailer | None
    target: str = ""
    """Architecture of the guest; empty in files that are not ours."""
    warnings: tuple[str, ...] = ()
    """What is unusual but legal."""

    @property
    def digest(self) -> str | None:
        """Identifies the file by its content, since it covers the digests of all pages and sections; None without a
        trailer."""
        return f"{self.trailer.digest:016x}" if self.trailer else None

    def block(self, idstr: str) -> SavedBlock | None:
        """The block of that name."""
        return next((saved for saved in self.blocks if saved.block.idstr == idstr), None)


def parse(read: ReadAt, size: int, base: int = 0, data_end: int | None = None) -> MigrationFile:
    """Read the structure of a file. Any number of zeros may follow it.

    Args:
        read: gives bytes at an offset.
        size: bytes in the file.
        base: where the stream starts; 0 for a libvirt save image too, whose header says where.
        data_end: from here on the file is known to be a hole, so nobody has to look for its last byte there.

    Raises:
        FormatError: the file is not a complete mapped-ram stream, or contradicts itself.
    """
    libvirt = None if base else _libvirt_header(read, size)
    cursor = Cursor(read, size, base := libvirt.end if libvirt else base)
    configuration = _configuration(cursor)
    page_size = TARGET_PAGE_SIZE if configuration.page_bits is None else 1 << configuration.page_bits
    content_end = trailer_reader.content_end(read, size if data_end is None else min(size, data_end))
    end = min(size, align_up(content_end, ALIGNMENT))
    found_trailer = trailer_reader.read_trailer(read, end) if trailer_reader.has_trailer(read, end) else None
    if found_trailer:
        cursor.end = end = found_trailer.offset
    walk = Walk(cursor, page_size, configuration, base, content_end=end)
    walk.run()
    if walk.blocks is None:
        raise FormatError("no ram section in the stream", offset=cursor.offset)
    description = vmdesc.read_vmdesc(cursor)
    stream_end = cursor.offset
    mapped_ram.check_overlaps(walk.blocks, base, stream_end)
    if found_trailer:
        trailer_reader.check_against(found_trailer, walk.blocks, base, stream_end)
        _check_zeros(read, stream_end, found_trailer.offset)
    else:
        if walk.ram_id == RAM_SECTION_ID or TRAILER_KEY in (description or ()):
            raise FormatError("the trailer that the stream announces is missing or cut off", offset=stream_end)
        _check_end(walk.blocks, stream_end, content_end)
    return MigrationFile(
        base=base,
        size=size,
        configuration=configuration,
        libvirt=libvirt,
        page_size=page_size,
        blocks=tuple(walk.blocks),
        devices=tuple(walk.devices),
        ram_ended=walk.ram_ended,
        has_vmdesc=description is not None,
        stream_end=stream_end,
        trailer=found_trailer,
        target=vmdesc.target((description or {}).get(TRAILER_KEY)),
        warnings=_warnings(walk.ram_ended, description is not None),
    )


def read_clone_blocks(read: ReadAt, found: Trailer) -> tuple[SavedBlock, ...]:
    """The blocks in a file's clone stream; empty if it has none.

    Raises:
        FormatError: the clone stream is malformed.
    """
    if not found.clone_offset:
        return ()
    cursor = Cursor(read, found.clone_end, found.clone_offset)
    walk = Walk(cursor, TARGET_PAGE_SIZE, stream.read_head(cursor), found.clone_offset)
    walk.run()
    if walk.blocks is None:
        raise FormatError("no ram section in the clone stream", offset=found.clone_offset)
    vmdesc.read_vmdesc(cursor)
    if cursor.offset != found.clone_end:
        raise FormatError(f"the clone stream ends early, expected {found.clone_end:#x}", offset=cursor.offset)
    mapped_ram.check_overlaps(walk.blocks, found.clone_offset, found.clone_end)
    return tuple(walk.blocks)


def _configuration(cursor: Cursor) -> Configuration:
    """Read the head of a stream, which has to be a mapped-ram stream."""
    base, configuration = cursor.offset, stream.read_head(cursor)
    if not {MAPPED_RAM, FIXED_RAM}.intersection(configuration.capabilities):
        raise FormatError("Capability mapped-ram is on, but received capability is off", offset=base)
    return configuration


def _libvirt_header(read: ReadAt, size: int) -> LibvirtHeader | None:
    """What precedes the mapped-ram stream in a libvirt save image; None in any other file."""
    if not is_libvirt_image(read):
        return None
    header = read_libvirt_header(read, size)
    if why := header.without_pages:
        raise FormatError(why, offset=0)
    return header


def _warnings(ram_ended: bool, has_vmdesc: bool) -> tuple[str, ...]:
    """What is unusual but legal."""
    found = []
    if not ram_ended:
        found.append("no RAM END section: the save was interrupted, or is a background snapshot without bitmaps")
    if not has_vmdesc:
        found.append("no VM description")
    return tuple(found)


def _check_end(blocks: Sequence[SavedBlock], stream_end: int, content_end: int) -> None:
    """Accept only zeros after the stream, and after any bitmaps and page arrays that lie behind it."""
    end = max(stream_end, *(max(saved.bitmap_end, saved.pages_end) for saved in blocks if not saved.absent), 0)
    if content_end > end:
        raise FormatError(
            f"{content_end - end} bytes follow the stream and are not a trailer",
            offset=end,
            hint=f"if adding a clone stream was interrupted: truncate --size={end} gives the file back",
        )


def _check_zeros(read: ReadAt, start: int, end: int) -> None:
    """Accept only zeros between stream and trailer, fewer than ALIGNMENT bytes."""
    if any(read(start, end - start)):
        raise FormatError("bytes that are not zero follow the stream and are not a trailer", offset=start)
