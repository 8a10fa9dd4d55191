"""Device sections: the part of a stream that is not RAM. Their bodies are opaque and carry no length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format import mapped_ram, stream
from parallel_fixedram.format.stream import Cursor

RAM_SECTION_ID = 0x52414D00
"""Id of the ram section in our files, ``RAM\\0``. QEMU's own, numbered from 0, a few per processor, stay far below it.
It announces the trailer as well, even in a file that is cut off before the VM description."""

VMGENID, FW_CFG = "vmgenid", "fw_cfg"
"""Section names of these two devices. A machine has the device if its file has the section (hw/acpi/vmgenid.c,
hw/nvram/fw_cfg.c)."""

MAX_DEVICES = 1 << 15
"""Most device sections that we read. QEMU writes three per processor and a few dozen more."""

_LONGEST_HEAD = 1 + 4 + 1 + 255 + 4 + 4
_FOOTER_BYTES = 5
_DEVICE_FOOTER = re.compile(rb"\x7e(?=(.{4})(?:\x04|\Z))", re.DOTALL)
"""A footer that is followed by a FULL section or the end of the data; group 1 is its id. It is a lookahead, so that
overlapping matches are found too."""


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


def names_of(sections: Iterable[DeviceSection]) -> frozenset[str]:
    """The names of some sections."""
    return frozenset(section.name for section in sections)


def read_device_sections(data: bytes) -> tuple[DeviceSection, ...]:
    """Split ``data``, which holds whole FULL sections and nothing else, into its device sections.

    Sections carry no length, and a guest may have put anything into a body, even bytes that look like a footer. But
    the sections have to add up to ``data`` exactly. So a footer is a candidate only if everything after it splits into
    sections, and a section ends at the last candidate with its id. The work is linear in the length.

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
    """The FULL section that begins at ``at`` and ends where ``ends`` has its id end; None if there is none."""
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
