"""Writes mapped-ram streams and trailers as test input: every legal dialect, and broken ones by patching legal ones.

Shares no code with the product: plain struct, numbers written out. A block is drawn, one letter a page::

    A..Z  a page of that letter, bit set            0  a zero page, bit clear, zeros in the file
    .     zeros, and yet its bit is set             -  stale bytes behind a cleared bit
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import xxhash

PAGE = 4096
MIB = 1 << 20
START, PART, END, FULL = 1, 2, 3, 4
VMDESC = b'{"configuration": {}, "page_size": 4096, "devices": []}'
OUR_RAM_ID = 0x52414D00
EOS = struct.pack(">Q", 0x10)

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A RAMBlock in the stream."""

    name: str = "m"
    picture: str = "A"
    address: int = 0
    """mr->addr, written only where the capabilities include x-ignore-shared."""
    host_page: int = 0
    """A word before the header, as postcopy-ram with huge pages has it; 0 for none."""
    absent: bool = False
    """Both offsets 0 and nothing stored (QEMU 11.0)."""
    bitmap_at: int | None = None
    """Where the bitmap goes; None for just behind the header."""
    pages_at: int | None = None
    """Where the page array goes; None for the next aligned offset."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section that is not RAM."""

    name: str
    body: bytes = b""
    instance: int = 0
    version: int = 1
    kind: int = FULL
    id: int | None = None
    more: tuple[bytes, ...] = ()
    """Bodies of the PART sections that follow it, the last one an END section."""


DEVICES = (Section(name="timer", body=b"\0" * 24), Section(name="cpu", body=b"~\0\0\0\x02 not a footer ~" * 9))


@dataclass(frozen=True)
class Stream:
    """A file and where its parts lie."""

    data: bytes
    marks: Mapping[str, int] = field(default_factory=dict)

    def patch(self, mark: str | int, layout: str, *values: object, at: int = 0) -> Stream:
        """The same file with other big-endian values ``at`` bytes behind a mark."""
        offset = at + (self.marks[mark] if isinstance(mark, str) else mark)
        new = struct.pack(">" + layout, *values)
        return replace(self, data=self.data[:offset] + new + self.data[offset + len(new) :])

    def cut(self, length: int) -> Stream:
        """The first ``length`` bytes."""
        return replace(self, data=self.data[:length])

    def read(self, offset: int, length: int) -> bytes:
        """As pread does: negative numbers are an error, the end of the file is not."""
        assert offset >= 0 <= length
        return self.data[offset : offset + length]


@dataclass
class Sparse:
    """A huge file of which only some pieces are not zero; counts what is read of it."""

    size: int
    pieces: Mapping[int, bytes]
    bytes_read: int = 0

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 <= length
        length = max(min(length, self.size - offset), 0)
        self.bytes_read += length
        found = bytearray(length)
        for place, data in self.pieces.items():
            first, end = max(place, offset), min(place + len(data), offset + length)
            if first < end:
                found[first - offset : end - offset] = data[first - place : end - place]
        return bytes(found)


class _Out:
    def __init__(self, base: int, head: bytes = b"") -> None:
        self.at = base or len(head)
        self.data = bytearray(head.ljust(self.at, b"\0"))

    def put(self, data: bytes) -> None:
        self.place(self.at, data)
        self.at += len(data)

    def place(self, offset: int, data: bytes) -> None:
        if len(self.data) < offset + len(data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def pack(self, layout: str, *values: object) -> None:
        self.put(struct.pack(">" + layout, *values))

    def counted(self, text: str) -> None:
        self.pack("B", len(text))
        self.put(text.encode("latin-1"))


def bitmap_of(picture: str) -> bytes:
    """The bitmap of a drawn block."""
    bits = sum(1 << i for i, letter in enumerate(picture) if letter not in "0-")
    return bits.to_bytes((len(picture) + 63) // 64 * 8, "little")


def pages_of(picture: str, page: int = PAGE) -> bytes:
    """What the page array of a drawn block holds."""
    return b"".join(bytes(page) if letter in "0." else letter.encode() * page for letter in picture)


def stream(
    *blocks: Block,
    machine: str = "pc-q35-10.0",
    capabilities: Sequence[str] | None = ("mapped-ram",),
    page_bits: int | None = None,
    uuid: bytes | None = None,
    base: int = 0,
    head: bytes = b"",
    alignment: int = PAGE,
    ram_id: int = 1,
    header_version: int = 1,
    early: Sequence[Section] = (),
    parts: int = 1,
    fillers: int = 0,
    command: bool = True,
    end: bool = True,
    devices: Sequence[Section] = DEVICES,
    eof: bool = True,
    vmdesc: bytes | None = VMDESC,
    tail: bytes = b"",
) -> Stream:
    """A stream as QEMU writes it, but for what is asked otherwise.

    Args:
        blocks: RAM, in the stream's order.
        machine: machine type.
        capabilities: recorded ones; None for no such subsection.
        page_bits: for a subsection of that name, and the page size.
        uuid: for a subsection of that name.
        base: where the stream starts, behind as many zeros.
        head: or behind these bytes.
        alignment: of page arrays, bytes; QEMU's is 1 MiB, but its loader takes anything page-aligned.
        ram_id: id of the ram section.
        header_version: of every MappedRamHeader.
        early: sections before ``ram``.
        parts: number of empty ``ram`` PART sections.
        fillers: number of empty MEM_SIZE words in front of the EOS of the START section.
        command: whether SWITCHOVER_START follows.
        end: whether the ``ram`` END section follows.
        devices: sections after it.
        eof: whether the end mark follows; without it nothing else does.
        vmdesc: JSON of the VM description, or None for none.
        tail: whatever follows.
    """
    out, marks = _Out(base, head), {}
    page = PAGE if page_bits is None else 1 << page_bits
    marks["magic"] = out.at
    out.put(b"QEVM")
    marks["version"] = out.at
    out.pack("IB", 3, 7)
    marks["machine"] = out.at
    out.pack("I", len(machine))
    out.put(machine.encode("latin-1"))
    if page_bits is not None:
        marks["page_bits"] = out.at
        _subsection(out, "configuration/target-page-bits", struct.pack(">I", page_bits))
    if capabilities is not None:
        names = b"".join(bytes([len(name)]) + name.encode() for name in capabilities)
        marks["capabilities"] = out.at
        _subsection(out, "configuration/capabilities", struct.pack(">I", len(capabilities)) + names)
    if uuid is not None:
        _subsection(out, "configuration/uuid", uuid)
    for number, section in enumerate(early):
        _section(out, marks, section, 0x100 + number)
    marks["ram"] = out.at
    out.pack("BI", START, ram_id)
    out.counted("ram")
    out.pack("II", 0, 4)
    marks["total"] = out.at
    out.pack("Q", sum(len(block.picture) * page for block in blocks) | 4)
    for block in blocks:
        _block(out, marks, block, page, alignment, header_version, "x-ignore-shared" in (capabilities or ()))
    out.put(struct.pack(">Q", 4) * fillers)
    marks["eos"] = out.at
    out.put(EOS + struct.pack(">BI", 0x7E, ram_id))
    for _ in range(parts):
        marks["part"] = out.at
        out.put(struct.pack(">BI", PART, ram_id) + EOS + struct.pack(">BI", 0x7E, ram_id))
    if command:
        marks["command"] = out.at
        out.put(bytes.fromhex("08 000b 0000"))
    if end:
        marks["end"] = out.at
        out.put(struct.pack(">BI", END, ram_id) + EOS + struct.pack(">BI", 0x7E, ram_id))
    for number, section in enumerate(devices):
        _section(out, marks, section, 2 + number)
    if eof:
        marks["eof"] = out.at
        out.put(b"\0")
        if vmdesc is not None:
            marks["vmdesc"] = out.at
            out.pack("BI", 6, len(vmdesc))
            out.put(vmdesc)
    marks["stream_end"] = out.at
    return Stream(bytes(out.data) + tail, marks)


def _subsection(out: _Out, name: str, body: bytes) -> None:
    out.pack("B", 5)
    out.counted(name)
    out.pack("I", 1)
    out.put(body)


def _block(
    out: _Out, marks: dict[str, int], block: Block, page: int, alignment: int, version: int, has_address: bool
) -> None:
    bitmap, used = bitmap_of(block.picture), len(block.picture) * page
    marks[f"record:{block.name}"] = out.at
    out.counted(block.name)
    marks[f"used:{block.name}"] = out.at
    out.pack("Q", used)
    if has_address:
        out.pack("Q", block.address)
    if block.host_page:
        out.pack("Q", block.host_page)
    marks[f"header:{block.name}"] = out.at
    if block.absent:
        out.pack("IQQQ", version, page, 0, 0)
        return
    bitmap_at = out.at + 28 if block.bitmap_at is None else block.bitmap_at
    after = max(out.at + 28, bitmap_at + len(bitmap) if block.bitmap_at is None else 0)
    pages_at = -(-after // alignment) * alignment if block.pages_at is None else block.pages_at
    out.pack("IQQQ", version, page, bitmap_at, pages_at)
    marks[f"bitmap:{block.name}"], marks[f"pages:{block.name}"] = bitmap_at, pages_at
    out.place(bitmap_at, bitmap)
    out.place(pages_at, pages_of(block.picture, page))
    out.at = pages_at + used


def _section(out: _Out, marks: dict[str, int], section: Section, default_id: int) -> None:
    number = default_id if section.id is None else section.id
    footer = struct.pack(">BI", 0x7E, number)
    marks[f"section:{section.name}"] = out.at
    out.pack("BI", section.kind, number)
    out.counted(section.name)
    out.pack("II", section.instance, section.version)
    out.put(section.body + footer)
    for index, body in enumerate(section.more):
        out.pack("BI", END if index == len(section.more) - 1 else PART, number)
        out.put(body + footer)


Part = tuple[int, int, bytes]
"""Type, flags and payload of a part of a trailer."""


def section_bytes(kind: int, *parts: int | bytes) -> bytes:
    """A section of this type: integers are big-endian words of 32 bits."""
    return bytes([kind]) + b"".join(struct.pack(">I", part) if isinstance(part, int) else part for part in parts)


def trailer(
    offset: int,
    parts: Sequence[Part],
    *,
    base: int = 0,
    magic: bytes = b"FIXEDRAM",
    version: int = 1,
    pad: bool = True,
    count: int | None = None,
    says_offset: int | None = None,
    says_length: int | None = None,
    digest: int | None = None,
) -> bytes:
    """A trailer for a file whose stream, zeros included, has ``offset`` bytes; what is None is as it should be."""
    parts = list(parts)
    body = b"".join(struct.pack(">IIQ", kind, flags, len(payload)) + payload for kind, flags, payload in parts)
    if pad:
        padding = bytes(-(offset + len(body) + 16 + 48) % PAGE)
        body += struct.pack(">IIQ", 0, 0, len(padding)) + padding
    body += struct.pack(
        ">8sIIQQQ",
        magic,
        version,
        len(parts) + pad if count is None else count,
        base,
        offset if says_offset is None else says_offset,
        offset + len(body) + 48 if says_length is None else says_length,
    )
    return body + struct.pack(">Q", xxhash.xxh3_64_intdigest(body) if digest is None else digest)


def stream_digests(data: bytes, ranges: Sequence[tuple[int, int]], kind: int = 1) -> Part:
    """The part with the digests of byte ranges of a file; its kind is 5 if they are before the stream."""
    rows = ((first, end - first, xxhash.xxh3_64_intdigest(data[first:end])) for first, end in ranges)
    return kind, 0, b"".join(struct.pack(">QQQ", *row) for row in rows)


def page_digests(number: int, picture: str) -> Part:
    """The part with the digests of a drawn block's pages."""
    digests = (0 if letter in "0-" else xxhash.xxh3_64_intdigest(pages_of(letter)) for letter in picture)
    return 2, 0, struct.pack(">II", number, 0) + b"".join(struct.pack("<Q", digest) for digest in digests)


def device_bytes(devices: Sequence[Section]) -> bytes:
    """FULL sections one after another, as a running QEMU hands them out; ids as in ``our_file``."""
    out = _Out(0)
    for number, each in enumerate(devices):
        _section(out, {}, each, 2 + number)
    return bytes(out.data)


def our_vmdesc(devices: Sequence[Section] = ()) -> bytes:
    """The VM description of the product's files, which knows how long every device section is."""
    entries = ", ".join(
        f'{{"name": "{each.name}", "instance_id": {each.instance}, "vmsd_name": "{each.name}", '
        f'"version": {each.version}, "fields": [{{"name": "body", "type": "buffer", "size": {len(each.body)}}}]}}'
        for each in devices
    )
    return f'{{"page_size": 4096, "devices": [{entries}], "parallel-fixedram": {{"trailer": 1}}}}'.encode()


def clone_stream(at: int, blocks: Sequence[Block], **how: object) -> Part:
    """The part whose payload, at offset ``at`` of the file, is a stream of these blocks; ``how`` goes to ``stream``."""
    ours = {"ram_id": OUR_RAM_ID, "parts": 0, "command": False, **how}
    return 3, 0, stream(*blocks, base=at, alignment=PAGE, **ours).data[at:]


def our_file(
    *blocks: Block,
    alignment: int = MIB,
    devices: Sequence[Section] = (),
    clone: Sequence[Block] = (),
    head: bytes = b"",
    **changes: object,
) -> Stream:
    """A whole file as the product writes it, trailer included; ``changes`` go to ``stream``.

    Args:
        blocks: RAM, in the stream's order.
        alignment: of page arrays, bytes.
        devices: sections after RAM.
        clone: blocks of the clone stream; none for no such stream.
        head: libvirt's header of 92 bytes and what follows it.
        changes: what else is not as the product has it.
    """
    ours = {"machine": "parallel-fixedram", "ram_id": OUR_RAM_ID, "parts": 0, "command": False}
    ours["vmdesc"] = our_vmdesc(devices)
    made = stream(*blocks, alignment=alignment, head=head, **{"devices": devices, **ours, **changes})
    base, marks = made.marks["magic"], dict(made.marks)
    data = made.data + bytes(-len(made.data) % PAGE)
    ranges, start = [], base
    for block in blocks:
        ranges.append((start, made.marks[f"pages:{block.name}"]))
        start = made.marks[f"pages:{block.name}"] + len(block.picture) * PAGE
    ranges.append((start, len(data)))
    parts = [stream_digests(data, ranges), *(page_digests(i, block.picture) for i, block in enumerate(blocks))]
    marks["trailer"] = len(data)
    if clone:
        marks["clone"] = len(data) + sum(16 + len(payload) for _, _, payload in parts) + 24 + 16
        same = {"machine": {**ours, **changes}["machine"], "vmdesc": ours["vmdesc"], "devices": devices}
        parts.append(clone_stream(marks["clone"], clone, **same))
        kind, flags, rows = parts[0]
        payload = parts[-1][2]
        row = struct.pack(">QQQ", marks["clone"], len(payload), xxhash.xxh3_64_intdigest(payload))
        parts[0] = (kind, flags, rows + row)
        marks["clone_end"] = marks["clone"] + len(parts[-1][2])
    if head:
        parts.append(stream_digests(data, [(0, 92), (92, len(head))], kind=5))
    return Stream(data + trailer(len(data), parts, base=base), marks)
