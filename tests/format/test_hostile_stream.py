"""A hostile migration stream costs little memory, and time that grows with its length."""

import struct
import tracemalloc
from contextlib import suppress

import pytest
from support.streamwriter import (
    MIB,
    PAGE,
    Block,
    Stream,
    section_bytes,
    stream,
)

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format import sections as walk
from parallel_fixedram.format import vmdesc
from parallel_fixedram.format.migration_file import parse

M = Block(name="m", picture="A0C-" * 17)
BIOS = Block(name="pc.bios", picture="B")
EMPTY = stream(M, devices=(), eof=False)
ALLOWED_BYTES = 64 * MIB
"""What a hostile file may cost, bytes."""


def read(made, base=0):
    return parse(made.read, len(made.data), base)


def peak_of(made, base=0):
    tracemalloc.start()
    try:
        with suppress(FormatError):
            read(made, base)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HOSTILE = {
    "used_length": stream(M).patch("used:m", "Q", 1 << 51).patch("total", "Q", 1 << 51 | 4),
    "total": stream(M).patch("total", "Q", 2**64 - PAGE | 4),
    "machine name": stream(M).patch("machine", "I", 2**32 - 1),
    "capabilities": stream(M).patch("capabilities", "I", 2**32 - 1, at=32),
    "VM description": stream(M).patch("vmdesc", "I", 2**32 - 1, at=1),
    "offsets": stream(M).patch("header:m", "QQ", 2**64 - PAGE, 2**64 - PAGE, at=12),
}


@pytest.mark.parametrize("made", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_huge_number_costs_no_memory(made):
    assert peak_of(made) < 2 * MIB


@pytest.mark.parametrize("item", [b"[],", b'{"":0},', b"1e1,"])
def test_a_long_vm_description_costs_little_memory(item):
    made = stream(BIOS, vmdesc=b'{"a": [' + item * (vmdesc.MAX_VMDESC // 16 // len(item)) + b"0]}")
    assert read(made).has_vmdesc
    assert 16 * peak_of(made) < ALLOWED_BYTES


class Counting:
    """Counts what is read of a file, to see that the work grows with the file and not with its square."""

    def __init__(self, made):
        self.made = made
        self.bytes_read = 0

    def read(self, offset, length):
        data = self.made.read(offset, length)
        self.bytes_read += len(data)
        return data


def work_of(made):
    counting = Counting(made)
    with suppress(FormatError):
        parse(counting.read, len(made.data))
    return counting.bytes_read


@pytest.mark.parametrize(
    "piece",
    [
        section_bytes(2, 1, struct.pack(">QBI", 0x10, 0x7E, 1)),
        b"\x08\0\x0b\0\0",
        b"\x08\0\x01\xff\xff" + bytes(0xFFFF),
        section_bytes(2, 1, struct.pack(">Q", 4) * 3, struct.pack(">QBI", 0x10, 0x7E, 1)),
    ],
    ids=["parts", "commands", "long commands", "words"],
)
def test_endless_sections_are_read_in_linear_time(piece):
    made = EMPTY.data + piece * min(MIB // len(piece) + 1, 5000) + b"\0"
    assert work_of(Stream(made)) < 2 * len(made) + MIB


@pytest.mark.parametrize("length", [0, 1000, 100_000])
def test_many_device_sections_are_read_in_linear_time(length):
    body = bytes([0x55]) * length
    pieces = [
        section_bytes(4, 100 + i, b"\1a", 0, 0, body, b"\x7e", 100 + i)
        for i in range(min(2000, 4 * MIB // (length + 23)))
    ]
    made = Stream(EMPTY.data + b"".join(pieces) + b"\0")
    assert len(read(made).devices) == len(pieces)
    assert work_of(made) < 3 * len(made.data) + 2 * MIB


def test_sections_that_go_on_without_end_are_read_in_linear_time():
    first = section_bytes(1, 9, b"\1a", 0, 0, b"\x7e", 9)
    made = Stream(EMPTY.data + first + section_bytes(2, 9, b"\x7e", 9) * 5000 + b"\0")
    assert len(read(made).devices) == 1
    assert work_of(made) < 3 * len(made.data) + 2 * MIB


def test_a_body_full_of_false_footers_is_read_once():
    footers = section_bytes(4, 0x7E7E7E7E, b"\1a", 0, 0, b"\x7e" * 50_000)
    made = Stream(EMPTY.data + footers)
    with pytest.raises(FormatError, match="its footer is missing"):
        read(made)
    assert work_of(made) < 3 * len(made.data)


def test_the_end_of_a_section_is_not_looked_for_in_the_hole_behind_a_file():
    made = EMPTY.data + section_bytes(4, 9, b"\1a", 0, 0)
    size, asked = 1 << 34, []

    def read(offset, length):
        length = min(length, size - offset)
        asked.append(length)
        return made[offset : offset + length].ljust(length, b"\0")

    with pytest.raises(FormatError, match="its footer is missing"):
        parse(read, size, data_end=len(made))
    assert sum(asked) < 3 * len(made) + MIB


def test_a_file_that_shrinks_while_it_is_read_is_refused_at_once():
    made, asked = EMPTY.data + section_bytes(4, 9, b"\1a", 0, 0), []

    def shrunk(offset, length):
        asked.append(offset)
        return made[offset : offset + length]

    with pytest.raises(FormatError):
        parse(shrunk, 1 << 40)
    assert len(asked) < 100


def named_sections(count):
    name = b"\xff" + b"x" * 255
    pieces = [section_bytes(4, 100 + i, name, 2**32 - 1, 2**32 - 1, b"\x7e", 100 + i) for i in range(count)]
    return Stream(EMPTY.data + b"".join(pieces) + b"\0")


def test_there_are_at_most_so_many_device_sections(monkeypatch):
    monkeypatch.setattr(walk, "MAX_DEVICES", 100)
    assert len(read(named_sections(100)).devices) == 100
    with pytest.raises(FormatError, match="more than 100 device sections"):
        read(named_sections(101))


def test_as_many_device_sections_as_are_allowed_cost_little_memory():
    assert 32 * peak_of(named_sections(walk.MAX_DEVICES // 32)) < ALLOWED_BYTES
