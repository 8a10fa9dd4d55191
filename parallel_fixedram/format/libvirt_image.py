"""libvirt's save image: what libvirt puts in front of QEMU's stream.

::

    magic[16] version data_len was_running format cookie_offset unused[14] | XML NUL | cookie NUL | zeros | stream
    `-------------- 92 bytes, numbers of 32 bits, native-endian ---------'  `-------- data_len ---------'

``data_len`` never changes: libvirt adds 64 KiB of padding so that ``virsh save-image-edit`` has room for a longer XML,
and refuses one that does not fit. In the format ``sparse`` the stream is mapped-ram, and its offsets count from the
start of the image. An image that is not complete yet has a different magic.
Source: libvirt src/qemu/qemu_saveimage.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from parallel_fixedram.core.errors import FormatError, RequestError
from parallel_fixedram.core.units import align_up
from parallel_fixedram.format.stream import ReadAt

MAGIC = b"LibvirtQemudSave"
PARTIAL_MAGIC = b"LibvirtQemudPart"
VERSION = 2
PADDING = 64 << 10
"""Bytes by which the XML may grow later."""

MAX_ROOM = 16 << 20
"""Most bytes of XML, cookie and padding that we read. libvirt's own limit for a string in an RPC is 4 MiB."""

_FIELDS = "16s5I56x"
SIZE = struct.calcsize("=" + _FIELDS)
_ALIGNMENT = 4096


class SaveFormat(IntEnum):
    """Format of the stream after the XML (virQEMUSaveFormat)."""

    RAW = 0
    GZIP = 1
    BZIP2 = 2
    XZ = 3
    LZOP = 4
    ZSTD = 5
    SPARSE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtHeader:
    """What precedes the stream in an image."""

    version: int
    running: bool
    """Whether the domain was running when it was saved, and so will run after ``virsh restore``."""
    format: SaveFormat
    cookie_offset: int
    """Offset of libvirt's cookie from the start of the XML; 0 if there is none."""
    xml: bytes = field(repr=False)
    """The domain's XML, without NUL; untrusted, and it may contain passwords."""
    complete: bool
    """Whether the image was written to its end."""
    room: int
    """Bytes between the header's 92 and the stream."""

    @property
    def end(self) -> int:
        """Where the stream starts."""
        return SIZE + self.room

    @property
    def without_pages(self) -> str:
        """Why pages have no fixed offsets in this image; empty if they have."""
        if not self.complete:
            return "libvirt save image that is not complete: its save was interrupted or is still running"
        if self.format is not SaveFormat.SPARSE:
            return (
                f"libvirt save image in format {self.format.name.lower()}, where pages have no fixed offsets; "
                "save with virsh save --image-format sparse"
            )
        return ""


def is_libvirt_image(read: ReadAt) -> bool:
    """Whether a file begins like a libvirt save image, complete or not."""
    return read(0, len(MAGIC)) in (MAGIC, PARTIAL_MAGIC)


def read_libvirt_header(read: ReadAt, size: int) -> LibvirtHeader:
    """Read what precedes the stream of an image, in either byte order.

    Args:
        read: gives bytes at an offset.
        size: bytes in the file.

    Raises:
        FormatError: the file is not such an image, or contradicts itself.
    """
    head = read(0, SIZE)
    if head[: len(MAGIC)] not in (MAGIC, PARTIAL_MAGIC):
        raise FormatError("not a libvirt save image", offset=0)
    if len(head) < SIZE:
        raise FormatError(f"file ends in the libvirt header: expected {SIZE} bytes, got {len(head)}", offset=0)
    little, big = struct.unpack("<" + _FIELDS, head), struct.unpack(">" + _FIELDS, head)
    magic, version, room, running, number, cookie_offset = min(little, big, key=lambda fields: fields[1])
    if not 1 <= version <= VERSION:
        raise FormatError(f"libvirt save image of version {version}, expected 1 or 2", offset=16)
    if not 1 <= room <= min(MAX_ROOM, size - SIZE):
        raise FormatError(f"libvirt header says its XML takes {room} bytes, of {size - SIZE} that follow", offset=20)
    if number not in list(SaveFormat):
        raise FormatError(f"libvirt save image of unknown format {number}", offset=28)
    if cookie_offset > room:
        raise FormatError(f"libvirt header has its cookie at {cookie_offset:#x}, after the XML's {room:#x}", offset=32)
    xml, nul, _ = read(SIZE, cookie_offset or room).partition(b"\0")
    if not nul or not xml:
        raise FormatError("the libvirt image's domain XML is empty or not terminated", offset=SIZE)
    return LibvirtHeader(
        version=version,
        running=running != 0,
        format=SaveFormat(number),
        cookie_offset=cookie_offset,
        xml=xml,
        complete=magic == MAGIC,
        room=room,
    )


def compose_libvirt_header(xml: bytes, running: bool) -> bytes:
    """What precedes the stream in a complete sparse image; its length is a multiple of 4096.

    Args:
        xml: the domain's, as printed by ``virsh dumpxml --migratable --security-info``.
        running: whether the domain shall run after ``virsh restore``.

    Raises:
        RequestError: the XML cannot be stored: it is empty, too long, or contains a NUL.
    """
    end = align_up(SIZE + len(xml) + 1 + PADDING, _ALIGNMENT)
    if not xml or b"\0" in xml or end - SIZE > MAX_ROOM:
        raise RequestError(f"domain XML of {len(xml)} bytes cannot be stored in a libvirt save image")
    fields = MAGIC, VERSION, end - SIZE, int(running), SaveFormat.SPARSE, 0
    return (struct.pack("=" + _FIELDS, *fields) + xml).ljust(end, b"\0")


def head_ranges(end: int) -> list[tuple[int, int]]:
    """The byte ranges before a stream that starts at ``end``: the header, and the XML with what follows it."""
    return [(0, SIZE), (SIZE, end)]
