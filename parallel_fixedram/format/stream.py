"""QEMU's migration stream: its constants, a cursor to read it, and functions that pack its pieces.

::

    stream  := magic version CONFIG section* EOF [VMDESC]
    CONFIG  := 07 len:be32 machine[len] subsection*
    FULL    := 04 id:be32 n:u8 name[n] instance:be32 version:be32 body FOOTER       START := 01 ... the same
    PART    := 02 id:be32 body FOOTER                                               END   := 03 ... the same
    COMMAND := 08 cmd:be16 len:be16 data[len]
    FOOTER  := 7E id:be32         EOF := 00         VMDESC := 06 len:be32 json[len]

Everything is big-endian. Source: QEMU migration/savevm.h, migration/savevm.c, migration/qemu-file.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel_fixedram.core.errors import FormatError

QEMU_VM_FILE_MAGIC = 0x5145564D
QEMU_VM_FILE_VERSION_COMPAT = 0x00000002
QEMU_VM_FILE_VERSION = 0x00000003

QEMU_VM_EOF = 0x00
QEMU_VM_SECTION_START = 0x01
QEMU_VM_SECTION_PART = 0x02
QEMU_VM_SECTION_END = 0x03
QEMU_VM_SECTION_FULL = 0x04
QEMU_VM_SUBSECTION = 0x05
QEMU_VM_VMDESCRIPTION = 0x06
QEMU_VM_CONFIGURATION = 0x07
QEMU_VM_COMMAND = 0x08
QEMU_VM_SECTION_FOOTER = 0x7E

MAX_COMMAND = 11
"""MIG_CMD_SWITCHOVER_START, the highest command of QEMU 10.0."""

MAX_MACHINE_NAME = 255
"""Longest machine name we read, in bytes; QEMU's own are under 32."""

CONFIGURATION_CAPABILITIES = "configuration/capabilities"
CONFIGURATION_PAGE_BITS = "configuration/target-page-bits"
CONFIGURATION_UUID = "configuration/uuid"

_READ_AHEAD = 1 << 16
_HEAD = struct.Struct(">II")

ReadAt = Callable[[int, int], bytes]
"""``read(offset, length)``: the bytes there, fewer where the file ends."""


class Cursor:
    """Reads forward through untrusted bytes; every length is checked against the end before it is used.

    Args:
        read: gives the bytes.
        end: the offset after the last byte that may be read.
        offset: where to start.
    """

    def __init__(self, read: ReadAt, end: int, offset: int = 0) -> None:
        self.read_at = read
        self.end = end
        self.offset = offset
        self._buffer = b""
        self._buffer_offset = 0

    def peek(self, length: int) -> bytes:
        """Up to ``length`` bytes from here, without moving."""
        left = self.end - self.offset
        if length > left:
            length = max(left, 0)
        start = self.offset - self._buffer_offset
        if start < 0 or start + length > len(self._buffer):
            wanted = max(min(max(length, _READ_AHEAD), left), 0)
            self._buffer, self._buffer_offset, start = self.read_at(self.offset, wanted), self.offset, 0
        return self._buffer[start : start + length]

    def take(self, length: int, what: str) -> bytes:
        """The next ``length`` bytes.

        Raises:
            FormatError: the file ends before them.
        """
        data = self.peek(length)
        if len(data) < length:
            raise FormatError(f"file ends in {what}: expected {length} bytes, got {len(data)}", offset=self.offset)
        self.offset += length
        return data

    def skip(self, length: int, what: str) -> None:
        """Move past ``length`` bytes without reading them.

        Raises:
            FormatError: the file ends before them.
        """
        if length > self.end - self.offset:
            left = self.end - self.offset
            raise FormatError(f"file ends in {what}: expected {length} bytes, got {left}", offset=self.offset)
        self.offset += length

    def u8(self, what: str) -> int:
        """The next byte."""
        return self.take(1, what)[0]

    def be16(self, what: str) -> int:
        """The next 2 bytes as a big-endian number."""
        return int.from_bytes(self.take(2, what), "big")

    def be32(self, what: str) -> int:
        """The next 4 bytes as a big-endian number."""
        return int.from_bytes(self.take(4, what), "big")

    def be64(self, what: str) -> int:
        """The next 8 bytes as a big-endian number."""
        return int.from_bytes(self.take(8, what), "big")

    def text(self, length: int, what: str) -> str:
        """The next ``length`` bytes, which must be printable ASCII."""
        at = self.offset
        text = self.take(length, what).decode("latin-1")
        if not (text.isascii() and text.isprintable()):
            raise FormatError(f"{what} is not printable ASCII: {text!r}", offset=at)
        return text

    def counted_text(self, what: str) -> str:
        """A string after its one-byte length (QEMU: qemu_get_counted_string)."""
        return self.text(self.u8(what), what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The configuration section (QEMU: vmstate_configuration)."""

    machine: str
    """Machine type such as ``pc-q35-10.0``."""
    capabilities: tuple[str, ...] = ()
    """Names of the recorded capabilities, in the stream's order."""
    page_bits: int | None = None
    """Target page bits, if the stream records them; x86 streams do not."""
    uuid: bytes | None = None
    """16 bytes, if the stream has them."""


def pack_counted(text: str) -> bytes:
    """A string after its one-byte length."""
    data = text.encode("ascii")
    return bytes([len(data)]) + data


def pack_head(machine: str, capabilities: Sequence[str], page_bits: int | None = None) -> bytes:
    """Magic, version and a configuration section that records ``capabilities``, and ``page_bits`` unless it is None."""
    name = machine.encode("ascii")
    return b"".join(
        (
            _HEAD.pack(QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION),
            struct.pack(">BI", QEMU_VM_CONFIGURATION, len(name)),
            name,
            b"" if page_bits is None else _pack_subsection(CONFIGURATION_PAGE_BITS, struct.pack(">I", page_bits)),
            _pack_subsection(CONFIGURATION_CAPABILITIES, struct.pack(">I", len(capabilities))),
            *(pack_counted(name) for name in capabilities),
        )
    )


def _pack_subsection(name: str, body: bytes) -> bytes:
    return bytes([QEMU_VM_SUBSECTION]) + pack_counted(name) + struct.pack(">I", 1) + body


def pack_section_head(kind: int, section_id: int, name: str, instance_id: int, version_id: int) -> bytes:
    """The head of a START or FULL section."""
    return struct.pack(">BI", kind, section_id) + pack_counted(name) + struct.pack(">II", instance_id, version_id)


def pack_footer(section_id: int) -> bytes:
    """The footer that ends every section but a COMMAND."""
    return struct.pack(">BI", QEMU_VM_SECTION_FOOTER, section_id)


def pack_vmdesc(json_text: str) -> bytes:
    """The VM description that follows the end of the stream."""
    data = json_text.encode("ascii")
    return struct.pack(">BI", QEMU_VM_VMDESCRIPTION, len(data)) + data


def read_head(cursor: Cursor) -> Configuration:
    """Read magic, version and configuration section.

    Raises:
        FormatError: not a migration stream, an unknown version, or a malformed configuration section.
    """
    at = cursor.offset
    head = cursor.peek(_HEAD.size)
    if len(head) < _HEAD.size or _HEAD.unpack(head)[0] != QEMU_VM_FILE_MAGIC:
        raise FormatError("not a migration stream: expected the magic 'QEVM'", offset=at)
    version = _HEAD.unpack(cursor.take(_HEAD.size, "stream head"))[1]
    if version != QEMU_VM_FILE_VERSION:
        obsolete = " (SaveVM v2 format is obsolete)" if version == QEMU_VM_FILE_VERSION_COMPAT else ""
        raise FormatError(f"unsupported migration stream version {version}{obsolete}, expected 3", offset=at + 4)
    if cursor.u8("configuration section") != QEMU_VM_CONFIGURATION:
        raise FormatError("configuration section missing", offset=at + 8)
    length = cursor.be32("length of the machine name")
    if length > MAX_MACHINE_NAME:
        raise FormatError(f"machine name of {length} bytes, at most {MAX_MACHINE_NAME}", offset=cursor.offset - 4)
    machine = cursor.text(length, "machine name")
    capabilities: tuple[str, ...] = ()
    page_bits: int | None = None
    uuid: bytes | None = None
    while cursor.peek(1) == bytes([QEMU_VM_SUBSECTION]):
        at = cursor.offset
        cursor.take(1, "subsection")
        name = cursor.counted_text("subsection name")
        if (version := cursor.be32(f"version of {name}")) != 1:
            raise FormatError(f"{name}: unknown version {version}, expected 1", offset=cursor.offset - 4)
        if name == CONFIGURATION_CAPABILITIES:
            capabilities = _read_capabilities(cursor)
        elif name == CONFIGURATION_PAGE_BITS:
            page_bits = cursor.be32(name)
            if not 10 <= page_bits <= 16:
                raise FormatError(f"target page bits {page_bits}, expected 10 to 16", offset=cursor.offset - 4)
        elif name == CONFIGURATION_UUID:
            uuid = cursor.take(16, name)
        else:
            raise FormatError(f"unknown configuration subsection {name!r}", offset=at)
    return Configuration(machine=machine, capabilities=capabilities, page_bits=page_bits, uuid=uuid)


def _read_capabilities(cursor: Cursor) -> tuple[str, ...]:
    count = cursor.be32("number of capabilities")
    if count > 64:
        raise FormatError(f"{count} recorded capabilities, at most 64", offset=cursor.offset - 4)
    return tuple(cursor.counted_text("capability name") for _ in range(count))
