from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.streamwriter import DEVICES, Sparse, device_bytes, our_vmdesc

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.format import mapped_ram
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.mapped_ram import MappedRamHeader, pack_record, pack_word
from parallel_fixedram.format.migration_file import parse
from parallel_fixedram.format.stream import pack_footer, pack_head, pack_section_head

MIB = 1 << 20

# A 1 GiB q35 of QEMU 10.0.2: name, used_length, record, bitmap, pages.
Q35 = [
    ("m", 0x40000000, 0x60, 0x86, 0x100000),
    ("/rom@etc/acpi/tables", 0x20000, 0x40100000, 0x40100039, 0x40200000),
    ("pc.bios", 0x40000, 0x40220000, 0x4022002C, 0x40300000),
    ("pc.rom", 0x20000, 0x40340000, 0x4034002B, 0x40400000),
    ("/rom@etc/table-loader", 0x1000, 0x40420000, 0x4042003A, 0x40500000),
    ("/rom@etc/acpi/rsdp", 0x1000, 0x40501000, 0x40501037, 0x40600000),
]
Q35_HEAD = bytes.fromhex(
    "51 45 56 4d 00 00 00 03 07 00 00 00 0b 70 63 2d 71 33 35 2d 31 30 2e 30"
    "05 1a 63 6f 6e 66 69 67 75 72 61 74 69 6f 6e 2f 63 61 70 61 62 69 6c 69 74 69 65 73 00 00 00 01"
    "00 00 00 01 0a 6d 61 70 70 65 64 2d 72 61 6d"
)
Q35_RAM = bytes.fromhex("01 00 00 00 01 03 72 61 6d 00 00 00 00 00 00 00 04")
Q35_TOTAL = bytes.fromhex("00 00 00 00 40 08 20 04")
Q35_M = bytes.fromhex("01 6d 00000000 40000000 00000001 00000000 00001000 00000000 00000086 00000000 00100000")


def block(name="m", pages=1):
    return RAMBlock(idstr=name, used_length=pages * 4096)


def q35_blocks():
    return [RAMBlock(idstr=name, used_length=used) for name, used, *_ in Q35]


def test_our_layout_puts_the_blocks_of_a_q35_where_qemu_puts_them():
    layout = FileLayout.plan("pc-q35-10.0", q35_blocks())
    places = [
        (each.block.idstr, each.block.used_length, each.record_offset, each.header.bitmap_offset,
         each.header.pages_offset)
        for each in layout.blocks
    ]  # fmt: skip
    assert places == Q35
    assert layout.ram_end == 0x40601000


def test_the_pieces_of_a_head_are_qemus_bytes():
    assert pack_head("pc-q35-10.0", ["mapped-ram"]) == Q35_HEAD
    assert pack_section_head(1, 1, "ram", 0, 4) == Q35_RAM
    assert pack_word(0x40082000, 4) == Q35_TOTAL
    header = MappedRamHeader(page_size=4096, bitmap_offset=0x86, pages_offset=0x100000)
    assert pack_record(RAMBlock(idstr="m", used_length=0x40000000), header) == Q35_M
    assert bytes.fromhex("0000000000000010 7e00000001") == pack_word(0, 0x10) + pack_footer(1)


def test_our_head_differs_from_qemus_only_in_the_id_of_the_ram_section():
    pieces = dict(FileLayout.plan("pc-q35-10.0", q35_blocks()).head_pieces())
    ours = Q35_RAM[:1] + b"RAM\0" + Q35_RAM[5:]
    assert pieces[0] == Q35_HEAD + ours + Q35_TOTAL
    assert len(pieces[0]) == 0x60
    assert pieces[0x60] == Q35_M
    assert sorted(pieces) == [0] + [record for _, _, record, _, _ in Q35]


def test_the_tail_ends_ram_carries_the_devices_and_announces_the_trailer():
    ram_end = "00000000 00000010 7e 52414d00 03 52414d00 00000000 00000010 7e 52414d00"
    devices, description = device_bytes(DEVICES), our_vmdesc(DEVICES)
    tail = FileLayout.plan("m", [block()]).tail(devices)
    assert tail == bytes.fromhex(ram_end) + devices + b"\0\6" + len(description).to_bytes(4, "big") + description


def test_the_architecture_stands_in_the_description_and_its_page_bits_in_the_head():
    layout = FileLayout.plan("virt-10.0", [block()], target="aarch64", page_bits=12)
    assert layout.head_pieces()[0][1].startswith(pack_head("virt-10.0", ["mapped-ram"], 12))
    assert layout.blocks[0].record_offset == len(layout.head_pieces()[0][1])
    assert b'"parallel-fixedram": {"trailer": 1, "target": "aarch64"}' in layout.tail(b"")


@pytest.mark.parametrize(
    ("base", "record", "pages"), [(123, 0xDB, 0x100000), (0x200000, 0x200060, 0x300000), (0xFFFFF, 0x10005F, 0x200000)]
)
def test_page_arrays_are_aligned_in_the_file_wherever_the_stream_starts(base, record, pages):
    (saved,) = FileLayout.plan("pc-q35-10.0", [block()], base).blocks
    assert (saved.record_offset, saved.header.bitmap_offset, saved.header.pages_offset) == (record, record + 38, pages)


machines = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255)
sizes = st.sampled_from([1, 63, 64, 65, 128, 255, 256]) | st.integers(1, 1 << 30)
blocks_of_any_size = st.lists(st.tuples(names, sizes), min_size=1, max_size=6, unique_by=lambda each: each[0])


def naive_layout(machine, blocks, base):
    """Count bytes one after another, as the file has them."""
    at = base + 4 + 4  # magic, version
    at += 1 + 4 + len(machine)
    at += 1 + 1 + len("configuration/capabilities") + 4 + 4 + 1 + len("mapped-ram")
    at += 1 + 4 + 1 + len("ram") + 4 + 4
    at += 8  # total
    for name, pages in blocks:
        record = at
        at += 1 + len(name) + 8 + 28
        bitmap = at
        at += 8 * ((pages + 63) // 64)
        while at % MIB:
            at += MIB - at % MIB
        yield record, bitmap, at
        at += pages * 4096
    yield at


@given(machines, blocks_of_any_size, st.sampled_from([0, 1, 123, 4096, MIB]) | st.integers(0, 1 << 40))
@example("m", [("a", 1), ("b", 65)], 0)
def test_the_layout_is_the_one_that_counting_bytes_gives(machine, blocks, base):
    layout = FileLayout.plan(machine, [block(*each) for each in blocks], base)
    *expected, end = naive_layout(machine, blocks, base)
    assert [(s.record_offset, s.header.bitmap_offset, s.header.pages_offset) for s in layout.blocks] == expected
    assert layout.ram_end == end


@given(machines, blocks_of_any_size, st.sampled_from([0, 1, 123, MIB]))
def test_nothing_in_a_layout_overlaps(machine, blocks, base):
    layout = FileLayout.plan(machine, [block(*each) for each in blocks], base)
    places = [(offset, offset + len(data)) for offset, data in layout.head_pieces()]
    places += [(s.header.bitmap_offset, s.bitmap_end) for s in layout.blocks]
    places += [(s.header.pages_offset, s.pages_end) for s in layout.blocks]
    places = [(base, base), *sorted(places), (layout.ram_end, layout.ram_end)]
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    assert all(s.header.pages_offset % MIB == 0 for s in layout.blocks)


@given(machines, blocks_of_any_size, st.sampled_from([0, 1, 123, MIB]))
def test_a_file_of_this_layout_parses_to_the_same_layout(machine, blocks, base):
    layout = FileLayout.plan(machine, [block(*each) for each in blocks], base)
    pieces = dict(layout.head_pieces())
    pieces[layout.ram_end] = (
        layout.tail(b"").replace(b"parallel-fixedram", b"somebody-elses---").replace(b"RAM\0", b"\0\0\1\1")
    )
    pieces[base] = pieces[base].replace(b"RAM\0", b"\0\0\1\1")
    file = Sparse(layout.ram_end + len(pieces[layout.ram_end]), pieces)
    found = parse(file.read, file.size, base)
    assert found.blocks == layout.blocks
    assert found.configuration.machine == machine
    assert (found.base, found.devices, found.ram_ended) == (base, (), True)


def test_planning_twice_gives_the_same():
    assert FileLayout.plan("m", q35_blocks()) == FileLayout.plan("m", q35_blocks())
    assert FileLayout.plan(RAM_ONLY_MACHINE, [block()]).machine == "parallel-fixedram"


@pytest.mark.parametrize(
    ("machine", "blocks", "reason"),
    [
        ("m", [], "no RAMBlock"),
        ("m", [block("a"), block("a")], "two blocks are named 'a'"),
        ("m", [block(str(i)) for i in range(4097)], "4097 RAMBlocks, at most 4096"),
        ("m", [block("a", 1 << 51)], "do not fit in a file"),
        ("m", [block("a", 1 << 50), block("b", 1 << 50)], "do not fit in a file"),
        ("maschinë", [block()], "machine name"),
        ("a\nb", [block()], "machine name"),
        ("x" * 256, [block()], "machine name"),
        ("m", [RAMBlock(idstr="a", used_length=8192, page_size=8192)], "page size 8192, only 4096"),
    ],
)
def test_what_does_not_fit_a_file_is_refused(machine, blocks, reason):
    with pytest.raises(RequestError, match=reason):
        FileLayout.plan(machine, blocks)


def test_the_names_and_the_machine_may_be_as_long_as_the_reader_takes_them():
    layout = FileLayout.plan("x" * 255, [block("y" * 255)])
    assert len(layout.blocks) == 1


def test_as_many_blocks_as_the_reader_takes_can_be_laid_out():
    layout = FileLayout.plan("m", [block(str(i)) for i in range(mapped_ram.MAX_BLOCKS)])
    assert len(layout.blocks) == 4096
    assert layout.ram_end == 4096 * MIB + 4096
