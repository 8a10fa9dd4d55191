"""The walk over the sections of a stream, from the configuration to the end mark.

Device sections carry no length. Where the VM description gives it, it is used; otherwise a section ends at the first
footer that is followed by something that can follow a section.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.profiles import IGNORE_SHARED
from parallel_fixedram.format import mapped_ram, stream, vmdesc
from parallel_fixedram.format.device_sections import MAX_DEVICES, DeviceSection
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.stream import Configuration, Cursor
from parallel_fixedram.format.vmdesc import Lengths

MAX_SECTIONS = 1 << 20
MAX_BODY = 1 << 32
"""How far we search for the end of a device section, bytes."""

_SCAN_FIRST = 1 << 12
_SCAN_CHUNK = 1 << 20


class Walk:
    """Walks a stream's sections up to the end mark. None ends behind ``content_end``: there are only zeros."""

    def __init__(
        self,
        cursor: Cursor,
        page_size: int,
        configuration: Configuration,
        base: int = 0,
        *,
        content_end: int | None = None,
    ) -> None:
        self.cursor = cursor
        self.content_end = cursor.end if content_end is None else content_end
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
            raise FormatError(f"section id {section_id} is already that of {self.names[section_id]!r}", offset=at)
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
        if instance_id:
            raise FormatError(f"ram section of instance {instance_id}, expected 0: no QEMU loads it", offset=at)
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
        """Skip a body by its length in the VM description, or else up to its footer."""
        cursor, body = self.cursor, self.cursor.offset
        if self.lengths is None and self.blocks is not None:
            self.lengths = vmdesc.section_lengths(cursor.read_at, body, self.content_end)
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
        for hit in _find(cursor, footer, self.content_end):
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


def _find(cursor: Cursor, pattern: bytes, end: int) -> Iterator[int]:
    """Offsets of ``pattern`` from the cursor on, ascending, up to about ``end``.

    The caller may move the cursor between two of them.
    """
    search = re.compile(re.escape(pattern)).search  # bytes.find is up to 40 times slower on zeros
    start, wanted = cursor.offset, _SCAN_FIRST
    while start < end:
        cursor.offset = start
        chunk = cursor.peek(wanted)
        if len(chunk) < len(pattern):
            return
        hit = search(chunk)
        while hit:
            yield start + hit.start()
            hit = search(chunk, hit.start() + 1)
        start += len(chunk) - len(pattern) + 1
        wanted = min(2 * wanted, _SCAN_CHUNK)  # grows: most sections are short, and what is read beyond one was in vain
