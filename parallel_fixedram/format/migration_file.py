"""Read what a mapped-ram file says of itself: configuration, RAMBlocks, device sections, trailer.

Accepts what QEMU 9.0 to 11.0 and this package write, and raises FormatError for everything else; no page and no bitmap
is read. Device sections carry no length: the VM description knows it, and where there is none, a section ends at the
first footer that something which can follow a section follows.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.profiles import FIXED_RAM, IGNORE_SHARED, MAPPED_RAM
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.units import align_up
from parallel_fixedram.format import mapped_ram, stream, trailer, vmdesc
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.stream import Configuration, Cursor, ReadAt
from parallel_fixedram.format.trailer import Trailer
from parallel_fixedram.format.vmdesc import Lengths

TRAILER_KEY = "parallel-fixedram"
"""Key in the VM description of our files: it announces the trailer, so that a file cut off before it is found out."""

RAM_SECTION_ID = 0x52414D00
"""Id of the ram section in our files, ``RAM\\0``: QEMU's registration numbers, several a processor, stay far below it.
It announces the trailer just as well, of a file that is cut off even before the VM description."""

MAX_SECTIONS = 1 << 20
MAX_DEVICES = 1 << 15
"""Most device sections that are read; QEMU writes three a processor and a few dozen more."""
MAX_BODY = 1 << 32
"""Longest device section that is searched for its end, bytes."""

_LONGEST_HEAD = 1 + 4 + 1 + 255 + 4 + 4
_FOOTER_BYTES = 5
_DEVICE_FOOTER = re.compile(rb"\x7e(?=(.{4})(?:\x04|\Z))", re.DOTALL)
"""A footer that the end or a FULL section follows, its id as group 1; found also where two overlap."""

_SCAN_FIRST = 1 << 12
_SCAN_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSection:
    """A section that is not RAM; its body is opaque."""

    name: str
    instance_id: int
    version_id: int
    section_id: int
    offset: int
    """Absolute file offset of its first byte."""
    length: int
    """Bytes from there to the end of its footer."""

    @property
    def body_length(self) -> int:
        """Bytes between its head and its footer."""
        head = stream.pack_section_head(
            stream.QEMU_VM_SECTION_FULL, self.section_id, self.name, self.instance_id, self.version_id
        )
        return self.length - len(head) - len(stream.pack_footer(self.section_id))

    @property
    def body_offset(self) -> int:
        """Absolute file offset of its body."""
        return self.offset + self.length - len(stream.pack_footer(self.section_id)) - self.body_length


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationFile:
    """What a file says; offsets are absolute in bytes."""

    base: int
    """Where the stream starts."""
    size: int
    """Bytes in the file."""
    configuration: Configuration
    page_size: int
    blocks: tuple[SavedBlock, ...]
    devices: tuple[DeviceSection, ...]
    ram_ended: bool
    """Whether there is a ``ram`` END section: written just after the bitmaps."""
    has_vmdesc: bool
    stream_end: int
    """The offset after end mark and VM description."""
    trailer: Trailer | None
    target: str = ""
    """Architecture of the guest; only files of ours say it."""
    warnings: tuple[str, ...] = ()
    """What is unusual but legal."""

    def block(self, idstr: str) -> SavedBlock | None:
        """The block of that name."""
        return next((saved for saved in self.blocks if saved.block.idstr == idstr), None)


def parse(read: ReadAt, size: int, base: int = 0, data_end: int | None = None) -> MigrationFile:
    """Read the structure of a file; zeros may follow it, however many.

    Args:
        read: gives bytes at an offset.
        size: bytes in the file.
        base: where the stream starts.
        data_end: from where on the file is known to be a hole, so that nobody has to look for its last byte there.

    Raises:
        FormatError: the file is not a complete mapped-ram stream, or contradicts itself.
    """
    cursor = Cursor(read, size, base)
    configuration = stream.read_head(cursor)
    if not {MAPPED_RAM, FIXED_RAM}.intersection(configuration.capabilities):
        raise FormatError("Capability mapped-ram is on, but received capability is off", offset=base)
    page_size = TARGET_PAGE_SIZE if configuration.page_bits is None else 1 << configuration.page_bits
    content_end = trailer.content_end(read, size if data_end is None else min(size, data_end))
    end = min(size, align_up(content_end, trailer.ALIGNMENT))
    found_trailer = trailer.read_trailer(read, end) if trailer.has_trailer(read, end) else None
    if found_trailer:
        cursor.end = end = found_trailer.offset
    walk = _Walk(cursor, page_size, configuration, base, description_end=end)
    walk.run()
    if walk.blocks is None:
        raise FormatError("no ram section in the stream", offset=cursor.offset)
    description = vmdesc.read_vmdesc(cursor)
    stream_end = cursor.offset
    mapped_ram.check_overlaps(walk.blocks, base, stream_end)
    if found_trailer:
        trailer.check_against(found_trailer, walk.blocks, base, stream_end)
        _check_zeros(read, stream_end, found_trailer.offset)
    else:
        if walk.ram_id == RAM_SECTION_ID or TRAILER_KEY in (description or ()):
            raise FormatError("the trailer that the stream announces is missing or cut off", offset=stream_end)
        _check_end(walk.blocks, stream_end, content_end)
    warnings = []
    if not walk.ram_ended:
        warnings.append("no RAM END section: the save was interrupted, or is a background snapshot without bitmaps")
    if description is None:
        warnings.append("no VM description")
    return MigrationFile(
        base=base,
        size=size,
        configuration=configuration,
        page_size=page_size,
        blocks=tuple(walk.blocks),
        devices=tuple(walk.devices),
        ram_ended=walk.ram_ended,
        has_vmdesc=description is not None,
        stream_end=stream_end,
        trailer=found_trailer,
        target=vmdesc.target((description or {}).get(TRAILER_KEY)),
        warnings=tuple(warnings),
    )


def read_clone_blocks(read: ReadAt, found: Trailer) -> tuple[SavedBlock, ...]:
    """The blocks that a file's clone stream carries; empty where there is no such stream.

    Raises:
        FormatError: the clone stream is not what it should be.
    """
    if not found.clone_offset:
        return ()
    cursor = Cursor(read, found.clone_end, found.clone_offset)
    walk = _Walk(cursor, TARGET_PAGE_SIZE, stream.read_head(cursor), found.clone_offset)
    walk.run()
    if walk.blocks is None:
        raise FormatError("no ram section in the clone stream", offset=found.clone_offset)
    vmdesc.read_vmdesc(cursor)
    if cursor.offset != found.clone_end:
        raise FormatError(f"the clone stream ends early, expected {found.clone_end:#x}", offset=cursor.offset)
    mapped_ram.check_overlaps(walk.blocks, found.clone_offset, found.clone_end)
    return tuple(walk.blocks)


def read_device_sections(data: bytes) -> tuple[DeviceSection, ...]:
    """Tell apart the device sections in ``data``, which holds whole FULL sections and nothing else.

    Nobody says how long they are, and a guest may have put anything into a body, also what looks like the end of the
    section. But all of ``data`` has to be used up: of the footers behind which the rest can be divided to its last
    byte, the last one ends a section, so none inside it does. The work grows with the length.

    Returns:
        The sections, their offsets counted from the start of ``data``.

    Raises:
        FormatError: it holds something else.
    """
    ends: dict[int, int] = {}  # by section id, the last offset that such a section may end at
    for footer in reversed([(each.start(), each[1]) for each in _DEVICE_FOOTER.finditer(data)]):
        end = footer[0] + _FOOTER_BYTES
        if end == len(data) or _device_section(data, end, ends):
            ends.setdefault(int.from_bytes(footer[1], "big"), end)
    sections: list[DeviceSection] = []
    at = 0
    while at < len(data):
        section = _device_section(data, at, ends)
        if section is None or len(sections) == MAX_DEVICES:
            raise FormatError(f"not whole device sections, or more than {MAX_DEVICES}", offset=at)
        sections.append(section)
        at += section.length
    return tuple(sections)


def _device_section(data: bytes, at: int, ends: Mapping[int, int]) -> DeviceSection | None:
    """The FULL section that begins at ``at`` if it ends where ``ends`` says of its id; otherwise None."""
    head = data[at : at + _LONGEST_HEAD]
    cursor = Cursor(lambda offset, length: head[offset : offset + length], len(head))
    try:
        kind, section_id = cursor.u8("section type"), cursor.be32("section id")
        name = cursor.counted_text("section name")
        instance_id, version_id = cursor.be32("instance id"), cursor.be32("section version")
    except FormatError:
        return None
    end = ends.get(section_id, 0)
    if kind != stream.QEMU_VM_SECTION_FULL or name in ("", mapped_ram.RAM_SECTION) or section_id == RAM_SECTION_ID:
        return None
    if end - _FOOTER_BYTES < at + cursor.offset:
        return None
    return DeviceSection(
        name=name,
        instance_id=instance_id,
        version_id=version_id,
        section_id=section_id,
        offset=at,
        length=end - at,
    )


class _Walk:
    """Walks the sections of a stream, from the configuration to the end mark."""

    def __init__(
        self,
        cursor: Cursor,
        page_size: int,
        configuration: Configuration,
        base: int = 0,
        *,
        description_end: int | None = None,
    ) -> None:
        self.cursor = cursor
        self.description_end = cursor.end if description_end is None else description_end
        self.page_size = page_size
        self.base = base
        self.has_address = IGNORE_SHARED in configuration.capabilities
        self.blocks: list[SavedBlock] | None = None
        self.devices: list[DeviceSection] = []
        self.ram_ended = False
        self.ram_id = -1
        self.names: dict[int, str] = {}
        self.lengths: Lengths | None = None

    def run(self) -> None:
        """Read sections until the end mark."""
        for _ in range(MAX_SECTIONS):
            at = self.cursor.offset
            kind = self.cursor.u8("section type")
            if kind == stream.QEMU_VM_EOF:
                return
            if kind in (stream.QEMU_VM_SECTION_START, stream.QEMU_VM_SECTION_FULL):
                self._declared(at, kind)
            elif kind in (stream.QEMU_VM_SECTION_PART, stream.QEMU_VM_SECTION_END):
                self._continued(at, kind)
            elif kind == stream.QEMU_VM_COMMAND:
                self._command(at)
            else:
                raise FormatError(f"unknown savevm section type {kind}", offset=at)
        raise FormatError(f"more than {MAX_SECTIONS} sections", offset=self.cursor.offset)

    def _command(self, at: int) -> None:
        command = self.cursor.be16("command")
        if not 0 < command <= stream.MAX_COMMAND:
            raise FormatError(f"unknown command {command}", offset=at)
        self.cursor.skip(self.cursor.be16("length of a command"), "command")

    def _declared(self, at: int, kind: int) -> None:
        cursor = self.cursor
        section_id = cursor.be32("section id")
        name = cursor.counted_text("section name")
        instance_id = cursor.be32("instance id")
        version_id = cursor.be32("section version")
        if section_id in self.names:
            raise FormatError(f"section id {section_id} stands for {self.names[section_id]!r} already", offset=at)
        self.names[section_id] = name
        if name != mapped_ram.RAM_SECTION:
            if len(self.devices) == MAX_DEVICES:
                raise FormatError(f"more than {MAX_DEVICES} device sections", offset=at)
            self._skip_known_body(section_id, name, instance_id)
            self._device(at, section_id, name, instance_id, version_id)
            return
        if kind != stream.QEMU_VM_SECTION_START or self.blocks is not None:
            raise FormatError("a second or a wrong kind of ram section", offset=at)
        if version_id != mapped_ram.RAM_VERSION:
            raise FormatError(f"unsupported version {version_id} for 'ram' v{mapped_ram.RAM_VERSION}", offset=at)
        self.ram_id = section_id
        self.blocks = mapped_ram.read_start(
            cursor, start=self.base, page_size=self.page_size, has_address=self.has_address, file_size=cursor.end
        )
        self._footer(section_id)

    def _device(self, at: int, section_id: int, name: str, instance_id: int, version_id: int) -> None:
        self.devices.append(
            DeviceSection(
                name=name,
                instance_id=instance_id,
                version_id=version_id,
                section_id=section_id,
                offset=at,
                length=self.cursor.offset - at,
            )
        )

    def _continued(self, at: int, kind: int) -> None:
        section_id = self.cursor.be32("section id")
        if section_id not in self.names:
            raise FormatError(f"unknown savevm section {section_id}", offset=at)
        if section_id != self.ram_id:
            self._skip_body(section_id)
            return
        mapped_ram.read_words(self.cursor, self.page_size)
        self._footer(section_id)
        self.ram_ended = self.ram_ended or kind == stream.QEMU_VM_SECTION_END

    def _footer(self, section_id: int) -> None:
        at = self.cursor.offset
        footer = self.cursor.take(5, f"footer of section {self.names[section_id]!r}")
        if footer != stream.pack_footer(section_id):
            raise FormatError(f"missing section footer for {self.names[section_id]!r}", offset=at)

    def _skip_known_body(self, section_id: int, name: str, instance_id: int) -> None:
        """Skip a body by the length that the VM description gives it, or else by its footer."""
        cursor, body = self.cursor, self.cursor.offset
        if self.lengths is None and self.blocks is not None:
            self.lengths = vmdesc.section_lengths(cursor.read_at, body, self.description_end)
        known = (self.lengths or {}).get((name, instance_id))
        length = known.popleft() if known else -1
        if 0 <= length <= cursor.end - body:
            cursor.offset = body + length
            footer = stream.pack_footer(section_id)
            if cursor.peek(len(footer)) == footer:
                cursor.offset += len(footer)
                return
            cursor.offset = body
        self._skip_body(section_id)

    def _skip_body(self, section_id: int) -> None:
        cursor, footer = self.cursor, stream.pack_footer(section_id)
        body = cursor.offset
        for hit in _find(cursor, footer):
            if hit - body > MAX_BODY:
                break
            cursor.offset = hit + len(footer)
            if self._plausible_next():
                return
        raise FormatError(f"section {self.names[section_id]!r} does not end: its footer is missing", offset=body)

    def _plausible_next(self) -> bool:
        cursor = self.cursor
        head = cursor.peek(6 + 255)
        if not head:
            return False
        kind = head[0]
        if kind == stream.QEMU_VM_EOF:
            return len(head) == 1 or head[1] in (stream.QEMU_VM_EOF, stream.QEMU_VM_VMDESCRIPTION)
        if kind == stream.QEMU_VM_COMMAND:
            return len(head) >= 5 and 0 < struct.unpack_from(">H", head, 1)[0] <= stream.MAX_COMMAND
        if len(head) < 6:
            return False
        section_id = struct.unpack_from(">I", head, 1)[0]
        if kind in (stream.QEMU_VM_SECTION_PART, stream.QEMU_VM_SECTION_END):
            return section_id in self.names
        if kind not in (stream.QEMU_VM_SECTION_START, stream.QEMU_VM_SECTION_FULL):
            return False
        name = head[6 : 6 + head[5]].decode("latin-1")
        return section_id not in self.names and bool(name) and name.isascii() and name.isprintable()


def _find(cursor: Cursor, pattern: bytes) -> Iterator[int]:
    """Offsets of ``pattern`` from the cursor's place on, ascending; the cursor may be moved between two of them."""
    search = re.compile(re.escape(pattern)).search  # bytes.find is up to 40 times slower on zeros
    start, wanted = cursor.offset, _SCAN_FIRST
    while True:
        cursor.offset = start
        chunk = cursor.peek(wanted)
        if len(chunk) < len(pattern):
            return
        hit = search(chunk)
        while hit:
            yield start + hit.start()
            hit = search(chunk, hit.start() + 1)
        start += len(chunk) - len(pattern) + 1
        wanted = min(2 * wanted, _SCAN_CHUNK)  # most sections are short, and what is read ahead of one is read again


def _check_end(blocks: Sequence[SavedBlock], stream_end: int, content_end: int) -> None:
    """Accept nothing but zeros after the stream, and after bitmaps and page arrays that lie behind it."""
    end = max(stream_end, *(max(saved.bitmap_end, saved.pages_end) for saved in blocks if not saved.absent), 0)
    if content_end > end:
        raise FormatError(
            f"{content_end - end} bytes follow the stream and are no trailer",
            offset=end,
            hint=f"if adding a clone stream was interrupted: truncate --size={end} gives the file back",
        )


def _check_zeros(read: ReadAt, start: int, end: int) -> None:
    """Accept only zeros between stream and trailer, fewer than ALIGNMENT bytes."""
    if any(read(start, end - start)):
        raise FormatError("bytes that are not zero follow the stream and are no trailer", offset=start)
