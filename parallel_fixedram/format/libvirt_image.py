"""libvirt's save image: what libvirt puts in front of QEMU's stream.

::

    magic[16] version data_len was_running format cookie_offset unused[14] | XML NUL | cookie NUL | zeros | stream
    `-------------- 92 bytes, numbers of 32 bits, native-endian ---------'  `-------- data_len ---------'

``data_len`` never changes: libvirt leaves 64 KiB so that ``virsh save-image-edit`` finds room for a longer XML, and
refuses one that does not fit. In the format ``sparse`` the stream is a mapped-ram one, whose offsets count from the
beginning of the image. Until an image is complete, its magic is another one. Source: libvirt src/qemu/qemu_saveimage.c.
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
"""How much longer than now the XML may become."""

MAX_ROOM = 16 << 20
"""Most bytes of XML, cookie and padding that we read; what libvirt sends over its own connections is at most 4 MiB."""

_FIELDS = "16s5I56x"
SIZE = struct.calcsize("=" + _FIELDS)
_ALIGNMENT = 4096


class SaveFormat(IntEnum):
    """What stands after the XML (virQEMUSaveFormat)."""

    RAW = 0
    GZIP = 1
    BZIP2 = 2
    XZ = 3
    LZOP = 4
    ZSTD = 5
    SPARSE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtHeader:
    """What an image says in front of the stream."""

    version: int
    running: bool
    """Whether the domain ran when it was saved, and will after ``virsh restore``."""
    format: SaveFormat
    cookie_offset: int
    """Where libvirt's cookie is, counted from the XML; 0 where there is none."""
    xml: bytes = field(repr=False)
    """The domain's XML, without NUL; untrusted, and there may be passwords in it."""
    complete: bool
    """Whether whoever wrote the image came to its end."""
    room: int
    """Bytes between these 92 and the stream."""

    @property
    def end(self) -> int:
        """Where the stream starts."""
        return SIZE + self.room

    @property
    def without_pages(self) -> str:
        """Why the image does not hold every page at its own offset; empty where it does."""
        if not self.complete:
            return "libvirt save image that is not complete: its save was interrupted, or is still going on"
        if self.format is not SaveFormat.SPARSE:
            return (
                f"libvirt save image of format {self.format.name.lower()}, which has no page at a fixed offset: "
                "virsh save --image-format sparse makes one that has"
            )
        return ""


def is_libvirt_image(read: ReadAt) -> bool:
    """Whether a file begins like one, complete or not."""
    return read(0, len(MAGIC)) in (MAGIC, PARTIAL_MAGIC)


def read_libvirt_header(read: ReadAt, size: int) -> LibvirtHeader:
    """Read what stands in front of the stream of an image, in whichever byte order it was written.

    Args:
        read: gives bytes at an offset.
        size: bytes in the file.

    Raises:
        FormatError: it is no such image, or contradicts itself.
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
        raise FormatError("the libvirt image's domain XML is empty or does not end", offset=SIZE)
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
    """What stands in front of the stream in a complete sparse image; its length is a multiple of 4096.

    Args:
        xml: the domain's, as of ``virsh dumpxml --migratable --security-info``.
        running: whether ``virsh restore`` lets the domain run.

    Raises:
        RequestError: the XML cannot stand there: it is empty, too long, or has a NUL character.
    """
    end = align_up(SIZE + len(xml) + 1 + PADDING, _ALIGNMENT)
    if not xml or b"\0" in xml or end - SIZE > MAX_ROOM:
        raise RequestError(f"domain XML of {len(xml)} bytes cannot stand in a libvirt save image")
    fields = MAGIC, VERSION, end - SIZE, int(running), SaveFormat.SPARSE, 0
    return (struct.pack("=" + _FIELDS, *fields) + xml).ljust(end, b"\0")


def head_ranges(end: int) -> list[tuple[int, int]]:
    """The byte ranges of what stands before a stream at ``end``: the header, and the XML with what follows it."""
    return [(0, SIZE), (SIZE, end)]
