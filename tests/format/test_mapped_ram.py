import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import some_of
from support.streamwriter import MIB, PAGE, Block, Stream, stream

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.format.mapped_ram import (
    MappedRamHeader,
    SavedBlock,
    pack_record,
    pack_word,
    read_start,
    read_words,
)
from parallel_fixedram.format.stream import Cursor

TWO = (Block(name="m", picture="A0C-"), Block(name="pc.bios", picture="B"))

HEADERS = [
    (
        "00000001 0000000000001000 0000000000000086 0000000000100000",
        MappedRamHeader(page_size=4096, bitmap_offset=0x86, pages_offset=0x100000),
    ),
    (
        "00000001 0000000000001000 0000000040100039 0000000040200000",
        MappedRamHeader(page_size=4096, bitmap_offset=0x40100039, pages_offset=0x40200000),
    ),
    (
        "00000000 0000000000010000 0000000000000000 0000000000000000",
        MappedRamHeader(version=0, page_size=65536, bitmap_offset=0, pages_offset=0),
    ),
    (
        "ffffffff ffffffffffffffff fffffffffffffffe fffffffffffffffd",
        MappedRamHeader(
            version=2**32 - 1, page_size=2**64 - 1, bitmap_offset=2**64 - 2, pages_offset=2**64 - 3
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_a_header_is_28_big_endian_bytes_both_ways(data, header):
    assert header.pack() == bytes.fromhex(data)
    assert MappedRamHeader.unpack(bytes.fromhex(data)) == header
    assert MappedRamHeader.SIZE == 28


def test_a_record_is_name_length_and_header():
    block = RAMBlock(idstr="m", used_length=0x40000000)
    assert pack_record(block, HEADERS[0][1]) == bytes.fromhex("01 6d 0000000040000000" + HEADERS[0][0])


def test_a_word_is_an_address_and_flags():
    assert pack_word(0x40082000, 4) == bytes.fromhex("0000000040082004")
    assert pack_word(0, 0x10) == bytes.fromhex("0000000000000010")


def saved(pages=65, address=None, pages_offset=0x100000):
    return SavedBlock(
        block=RAMBlock(idstr="m", used_length=pages * PAGE),
        header=MappedRamHeader(page_size=PAGE, bitmap_offset=0x86, pages_offset=pages_offset),
        record_offset=0x60,
        address=address,
    )


def test_a_saved_block_knows_where_everything_of_it_lies():
    block = saved()
    assert block.header_offset == 0x6A
    assert block.bitmap_end == 0x86 + 16
    assert block.pages_end == block.next_offset == 0x100000 + 65 * PAGE
    assert (block.page_offset(0), block.page_offset(64)) == (0x100000, 0x140000)
    assert saved(address=0).header_offset == 0x6A + 8


@given(st.integers(0, 64), st.integers(0, PAGE - 1))
def test_every_byte_of_the_page_array_belongs_to_its_page(page, byte):
    assert saved().page_at(saved().page_offset(page) + byte) == page


def start_of(made, *, has_address=False, page_size=PAGE, size=None):
    size = len(made.data) if size is None else size
    cursor = Cursor(made.read, size, made.marks["total"])
    start = made.marks["magic"]
    blocks = read_start(cursor, start=start, page_size=page_size, has_address=has_address, file_size=size)
    assert cursor.offset == made.marks["eos"] + 8
    return blocks


@pytest.mark.parametrize("version", [0, 1])
def test_two_blocks_are_read(version):
    one, two = start_of(stream(*TWO, header_version=version))
    assert (one.block.idstr, one.block.pages, two.block.idstr, two.block.pages) == ("m", 4, "pc.bios", 1)
    assert one.record_offset == 0x60
    assert one.header == MappedRamHeader(version=version, page_size=PAGE, bitmap_offset=0x86, pages_offset=0x1000)
    assert (two.record_offset, two.header.bitmap_offset) == (0x5000, 0x5000 + 1 + 7 + 8 + 28)
    assert one.address is None
    assert not one.absent


def test_no_block_at_all_is_read():
    assert start_of(stream()) == []


def test_empty_mem_size_words_before_the_end_are_skipped():
    assert len(start_of(stream(*TWO, fillers=3))) == 2


def test_with_ignore_shared_each_record_carries_its_address():
    made = stream(
        Block(name="m", picture="AA", absent=True),
        Block(name="pc.bios", picture="B", address=0xFFFC0000),
        Block(name="pc.rom", picture="0", address=0xC0000),
        capabilities=("x-ignore-shared", "mapped-ram"),
    )
    blocks = start_of(made, has_address=True)
    assert [(each.block.idstr, each.absent, each.address) for each in blocks] == [
        ("m", True, 0),
        ("pc.bios", False, 0xFFFC0000),
        ("pc.rom", False, 0xC0000),
    ]
    assert blocks[0].next_offset == blocks[1].record_offset == blocks[0].record_offset + 1 + 1 + 8 + 8 + 28


def test_both_offsets_zero_without_ignore_shared_is_no_absent_block():
    made = stream(*TWO, Block(name="z"), base=8 * PAGE)
    made = made.patch("header:z", "QQ", 0, 0, at=12)
    made = made.patch(PAGE, "Q", 0x10)  # where the stream goes on then
    with pytest.raises(FormatError, match="block 'z': bitmap_offset 0x0, expected"):
        start_of(made)


def test_a_page_array_may_come_before_the_record():
    pages = Block(name="m", picture="AB", pages_at=8 * PAGE)
    small = Block(name="s", picture="C", pages_at=2 * PAGE)
    one, two = start_of(stream(pages, small, devices=()))
    assert one.pages_end == two.record_offset
    assert two.header.pages_offset == 2 * PAGE


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (stream(*TWO).patch("total", "Q", 0x5000 | 0x8), "unexpected RAM flags 0x8, expected MEM_SIZE"),
        (stream(*TWO).patch("total", "Q", 0x5000), "unexpected RAM flags 0x0"),
        (stream(*TWO).patch("total", "Q", 0x6000 | 4), "block name is empty"),
        (stream(*TWO).patch("total", "Q", 0x4000 | 4), "unexpected RAM flags"),
        (stream(*TWO).patch("total", "Q", 0x3000 | 4), "used_length 0x4000 exceeds the 0x3000 left"),
        (stream(*TWO).patch("total", "Q", 0xFFFFFFFFFFFFF000 | 4), "block name is empty"),
        (stream(Block(), Block()), "two blocks are named 'm'"),
        (stream(Block(name="")), "block name is empty"),
        (stream(Block(name="a\nb")), "block name is not printable"),
        (stream(Block(name="\xe9")), "block name is not printable"),
        (stream(Block(name="\0")), "block name is not printable"),
        (stream(Block(picture="")).patch("total", "Q", 0x1004), "used_length 0x0"),
        (stream(*TWO).patch("used:m", "Q", 0x4001), "used_length 0x4001, expected a positive multiple"),
        (stream(*TWO).patch("used:m", "Q", 0x3FFF), "used_length 0x3fff, expected"),
        (stream(*TWO).patch("used:m", "Q", 0x8000000000000000), "used_length 0x8000000000000000"),
        (stream(*TWO).patch("used:m", "Q", 1 << 52).patch("total", "Q", 1 << 53 | 4), "past the end of the file"),
        (stream(*TWO).patch("header:m", "I", 2), "header version 2, expected <= 1"),
        (stream(*TWO).patch("header:m", "I", 0xFFFFFFFF), "header version 4294967295"),
        (stream(*TWO).patch("header:m", "Q", 0, at=4), "page size 0, expected 4096"),
        (stream(*TWO).patch("header:m", "Q", 2048, at=4), "page size 2048, expected 4096"),
        (stream(*TWO).patch("header:m", "Q", 8192, at=4), "page size 8192, expected 4096"),
        (stream(*TWO).patch("header:m", "Q", 0x1001, at=20), "pages_offset 0x1001 is not a multiple"),
        (stream(*TWO).patch("header:m", "Q", 0x1200, at=20), "pages_offset 0x1200 is not a multiple"),
        (stream(*TWO).patch("header:m", "Q", 0x100000, at=20), "page array ends at .* past the end of the file"),
        (stream(*TWO).patch("header:m", "Q", 1 << 63, at=20), "page array ends at .* past the end of the file"),
        (stream(*TWO).patch("header:m", "Q", 2**64 - 4096, at=20), "page array ends at .* past the end"),
        (stream(*TWO).patch("header:m", "Q", 1 << 40, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 2**64 - 1, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0x5F, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0x70, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0x85, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0x87, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0x4FFF, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:m", "Q", 0x5004, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:pc.bios", "Q", 0x86, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("header:pc.bios", "Q", 0x8A, at=12), "bitmap_offset .* right behind the header"),
        (stream(*TWO).patch("eos", "Q", 0x8), "unexpected RAM flags 0x8, expected EOS"),
        (stream(*TWO).patch("eos", "Q", 0x2), "unexpected RAM flags 0x2, expected EOS"),
        (stream(*TWO).patch("eos", "Q", 0x200), "unexpected RAM flags 0x200, expected EOS"),
        (stream(*TWO).patch("eos", "Q", 0x1004), "unexpected RAM flags 0x4, expected EOS"),
        (stream(Block(), Block(name="s", pages_at=PAGE)), "block name is empty"),
        (stream(Block(picture="AAA"), Block(name="s", pages_at=2 * PAGE)), "begins inside the page array of block 'm'"),
    ],
)  # fmt: skip
def test_a_ram_section_that_is_wrong_is_refused_with_place_and_reason(made, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        start_of(made)
    assert caught.value.offset is not None


def test_a_page_array_at_the_head_of_the_stream_is_refused():
    made = stream(Block(name="big", picture="A" * 4, pages_at=4 * PAGE), Block(name="s"))
    made = made.patch("header:s", "Q", 0, at=20)
    made = made.patch(PAGE, "Q", 0x10)  # where the stream goes on then
    with pytest.raises(FormatError, match="the page array of block 's' begins inside the head of the stream"):
        start_of(made)


def test_a_name_may_fill_its_length_byte():
    name = "x" * 255
    assert start_of(stream(Block(name=name)))[0].block.idstr == name


def test_there_are_at_most_4096_blocks():
    many = [Block(name=f"b{i}", picture="0", absent=True) for i in range(4096)]
    capabilities = ("x-ignore-shared", "mapped-ram")
    assert len(start_of(stream(*many, capabilities=capabilities), has_address=True)) == 4096
    with pytest.raises(FormatError, match="more than 4096 RAMBlocks"):
        start_of(stream(*many, Block(name="last"), capabilities=capabilities), has_address=True)


def test_words_end_with_eos_and_hold_nothing_else():
    for words in ((0x10,), (4, 4, 0x10)):
        data = struct.pack(f">{len(words)}Q", *words)
        cursor = Cursor(Stream(data).read, len(data))
        read_words(cursor, PAGE)
        assert cursor.offset == len(data)
    with pytest.raises(FormatError, match="file ends in RAM words"):
        read_words(Cursor(Stream(struct.pack(">Q", 4)).read, 8), PAGE)


@pytest.mark.parametrize("made", [stream(*TWO, fillers=1)])
def test_a_ram_section_cut_anywhere_is_refused(made):
    for length in some_of(range(made.marks["total"], made.marks["eos"] + 8), 29):
        with pytest.raises(FormatError):
            start_of(made, size=length)


@pytest.mark.parametrize("length", [MIB * 1024**2, 1 << 52, 2**64 - PAGE])
def test_a_huge_block_costs_no_memory(length):
    made = stream(*TWO).patch("used:m", "Q", length).patch("total", "Q", (length + PAGE) % 2**64 | 4)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            start_of(made)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@given(st.data())
def test_any_change_of_the_ram_section_gives_blocks_inside_the_file_or_a_format_error(data):
    made = stream(*TWO)
    for _ in range(data.draw(st.integers(1, 4))):
        mark = data.draw(st.sampled_from(["total", "record:m", "used:m", "header:m", "record:pc.bios", "eos"]))
        at = data.draw(st.integers(0, 40))
        value = data.draw(st.sampled_from([0, 1, 8, 0x10, 0xFF]) | st.integers(0, 255))
        made = made.patch(mark, "B", value, at=at)
    cursor = Cursor(made.read, len(made.data), made.marks["total"])
    try:
        blocks = read_start(cursor, start=0, page_size=PAGE, has_address=False, file_size=len(made.data))
    except FormatError as error:
        blocks = []
        offset = error.offset
    else:
        offset = 0
    assert offset is not None
    places = sorted(
        place
        for each in blocks
        for place in [(each.header.bitmap_offset, each.bitmap_end), (each.header.pages_offset, each.pages_end)]
    )
    assert all(0 < start < end <= len(made.data) for start, end in places)
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
