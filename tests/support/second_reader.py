"""What the product says of a stream, checked against the stream: by a reader that is as plain as can be.

It knows the grammar and nothing of what is refused. Of what is opaque, the bodies of device sections, it takes the
length from the product. Every piece has to stand where the one before ends, and to be what was said of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from support.streamwriter import PAGE

from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.migration_file import MigrationFile


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def numbers(self, layout: str) -> tuple[int, ...]:
        found = struct.unpack_from(">" + layout, self.data, self.at)
        self.at += struct.calcsize(">" + layout)
        return found

    def number(self, layout: str) -> int:
        return self.numbers(layout)[0]

    def take(self, length: int) -> bytes:
        self.at += length
        return self.data[self.at - length : self.at]

    def text(self) -> str:
        return self.take(self.number("B")).decode("ascii")


def check_stream(data: bytes, file: MigrationFile) -> None:
    """Hold a stream against what the product read.

    Raises:
        AssertionError: the product read something else.
    """
    reader = _Reader(data, file.base)
    page = _check_configuration(reader, file)
    blocks, devices, ram_id = iter(file.blocks), iter(file.devices), -1
    while kind := reader.number("B"):
        start = reader.at - 1
        if kind == 8:
            reader.number("H")
            reader.take(reader.number("H"))
            continue
        section = reader.number("I")
        if kind in (1, 4):
            name, instance, version = reader.text(), *reader.numbers("II")
            if name != "ram":
                said = next(devices)
                assert (said.name, said.instance_id, said.version_id) == (name, instance, version)
                assert (said.section_id, said.offset) == (section, start)
                reader.at = start + said.length - 5
            else:
                ram_id = section
                total = reader.number("Q") & -page
                while total:
                    total -= _check_record(reader, next(blocks), page, "x-ignore-shared" in _capabilities(file))
                _skip_words(reader, page)
        elif section == ram_id:
            _skip_words(reader, page)
        else:
            return  # a body whose length nobody says
        assert reader.take(5) == struct.pack(">BI", 0x7E, section), hex(reader.at)
    assert next(blocks, None) is None
    assert next(devices, None) is None
    if file.has_vmdesc:
        assert reader.number("B") == 6
        reader.take(reader.number("I"))
    assert reader.at == file.stream_end
    _check_places(file)


def _capabilities(file: MigrationFile) -> Sequence[str]:
    return file.configuration.capabilities


def _check_configuration(reader: _Reader, file: MigrationFile) -> int:
    """Returns the page size."""
    said = file.configuration
    assert reader.take(9) == b"QEVM\0\0\0\3\7"
    assert reader.take(reader.number("I")).decode("ascii") == said.machine
    page_bits, capabilities, uuid = None, (), None
    while reader.data[reader.at] == 5:
        reader.at += 1
        name, _ = reader.text(), reader.number("I")
        if name == "configuration/capabilities":
            capabilities = tuple(reader.text() for _ in range(reader.number("I")))
        elif name == "configuration/target-page-bits":
            page_bits = reader.number("I")
        else:
            uuid = reader.take(16)
    assert (page_bits, capabilities, uuid) == (said.page_bits, said.capabilities, said.uuid)
    page = PAGE if page_bits is None else 1 << page_bits
    assert file.page_size == page
    return page


def _check_record(reader: _Reader, said: SavedBlock, page: int, has_address: bool) -> int:
    """Returns how much of the total a block is."""
    assert said.record_offset == reader.at
    name, used = reader.text(), reader.number("Q")
    address = reader.number("Q") if has_address else None
    version, size, bitmap, pages = reader.numbers("IQQQ")
    assert (said.block.idstr, said.block.used_length, said.address) == (name, used, address)
    assert (said.header.bitmap_offset, said.header.pages_offset, size) == (bitmap, pages, page)
    assert version <= 1
    if not (has_address and bitmap == pages == 0):
        assert not said.absent
        reader.at = pages + used
    return used


def _skip_words(reader: _Reader, page: int) -> None:
    while reader.number("Q") & page - 1 != 0x10:
        pass


def _check_places(file: MigrationFile) -> None:
    """All that is stored lies in the file, and nothing lies on anything else."""
    places = []
    for each in (each for each in file.blocks if not each.absent):
        length = each.block.used_length
        bitmap = (length // each.block.page_size + 63) // 64 * 8
        places.append((each.header.bitmap_offset, each.header.bitmap_offset + bitmap))
        places.append((each.header.pages_offset, each.header.pages_offset + length))
    places.sort()
    assert all(end <= file.size for _, end in places)
    assert all(one[1] <= two[0] for one, two in pairwise(places))


def contents(data: bytes, saved: SavedBlock) -> bytes:
    """A block's RAM as a file has it: the page where the bit is set, zeros where it is not."""
    size, at, bitmap = saved.block.page_size, saved.header.pages_offset, saved.header.bitmap_offset
    pages = saved.block.used_length // size
    bits = int.from_bytes(data[bitmap : bitmap + (pages + 7) // 8], "little")
    return b"".join(
        data[at + page * size : at + (page + 1) * size].ljust(size, b"\0") if bits >> page & 1 else bytes(size)
        for page in range(pages)
    )
