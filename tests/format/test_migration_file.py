import json
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import some_of
from support.streamwriter import (
    DEVICES,
    FULL,
    MIB,
    PAGE,
    START,
    VMDESC,
    Block,
    Section,
    Sparse,
    Stream,
    bitmap_of,
    our_file,
    pages_of,
    stream,
)

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format.migration_file import parse

M = Block(name="m", picture="A0C-" * 17)
BIOS = Block(name="pc.bios", picture="B")
BOTH = ("x-ignore-shared", "mapped-ram")


def read(made, base=0):
    return parse(made.read, len(made.data), base)


def contents(made, saved):
    """A block's RAM as the file has it: the page where the bit is set, zeros where it is not."""
    bitmap = PageBitmap.from_bytes(made.read(saved.header.bitmap_offset, saved.bitmap_end - saved.header.bitmap_offset),
                                   saved.block.pages)  # fmt: skip
    size = saved.block.page_size
    return b"".join(
        made.read(saved.page_offset(page), size) if bitmap.test(page) else bytes(size)
        for page in range(saved.block.pages)
    )


def ram_of(picture, page=PAGE):
    return pages_of(picture.replace("-", "0"), page)


# --- the worked example of the format's description: real bytes of a 1 GiB q35


def worked_example():
    hexed = {
        0x00: "51 45 56 4d 00 00 00 03 07 00 00 00 0b 70 63 2d 71 33 35 2d 31 30 2e 30 05 1a",
        0x1A: b"configuration/capabilities".hex() + "00 00 00 01",
        0x38: "00 00 00 01 0a 6d 61 70 70 65 64 2d 72 61 6d",
        0x47: "01 00 00 00 01 03 72 61 6d 00 00 00 00 00 00 00 04",
        0x58: "00 00 00 00 40 08 20 04",
        0x60: "01 6d 00 00 00 00 40 00 00 00",
        0x6A: "00 00 00 01 00 00 00 00 00 00 10 00 00 00 00 00 00 00 00 86 00 00 00 00 00 10 00 00",
        0x86: "41 00 3f 80 01 00 00 00",
        0x40100000: "14" + b"/rom@etc/acpi/tables".hex() + "00 00 00 00 00 02 00 00",
        0x4010001D: "00 00 00 01 00 00 00 00 00 00 10 00 00 00 00 00 40 10 00 39 00 00 00 00 40 20 00 00",
        0x40100039: "07 00 00 00 00 00 00 00",
        0x40601000: "00 00 00 00 00 00 00 10 7e 00 00 00 01",
        0x4060108B: "08 00 0b 00 00",
        0x40601090: "03 00 00 00 01 00 00 00 00 00 00 00 10 7e 00 00 00 01",
        0x406010A2: "04 00 00 00 00 05" + b"timer".hex() + "00 00 00 00 00 00 00 02",
        0x40609033: "7e 00 00 00 00",
        0x40609038: "00 06 00 00 b3 00",
    }
    pieces = {offset: bytes.fromhex(text) for offset, text in hexed.items()}
    for i in range(7):
        pieces[0x4060100D + 18 * i] = bytes.fromhex("02 00 00 00 01 00 00 00 00 00 00 00 10 7e 00 00 00 01")
    small = [
        (0x40220000, b"pc.bios", 0x40000, 0x40300000),
        (0x40340000, b"pc.rom", 0x20000, 0x40400000),
        (0x40420000, b"/rom@etc/table-loader", 0x1000, 0x40500000),
        (0x40501000, b"/rom@etc/acpi/rsdp", 0x1000, 0x40600000),
    ]
    for record, name, used, pages in small:
        head = bytes([len(name)]) + name + struct.pack(">Q", used)
        pieces[record] = head + struct.pack(">IQQQ", 1, 4096, record + len(head) + 28, pages)
    vmdesc = b'{"configuration": {"vmsd_name": "configuration"}, "devices": []}'
    pieces[0x4060903E] = vmdesc.ljust(0xB300)
    return Sparse(0x4060903E + 0xB300, pieces)


def test_the_worked_example_says_what_is_written_about_it():
    file = worked_example()
    found = parse(file.read, file.size)
    assert found.configuration.machine == "pc-q35-10.0"
    assert found.configuration.capabilities == ("mapped-ram",)
    assert (found.page_size, found.ram_ended, found.has_vmdesc, found.trailer) == (4096, True, True, None)
    assert found.stream_end == file.size
    assert [
        (each.block.idstr, each.block.used_length, each.record_offset, each.header_offset, each.header.version,
         each.header.page_size, each.header.bitmap_offset, each.header.pages_offset)
        for each in found.blocks
    ] == [
        ("m", 0x40000000, 0x60, 0x6A, 1, 4096, 0x86, 0x100000),
        ("/rom@etc/acpi/tables", 0x20000, 0x40100000, 0x4010001D, 1, 4096, 0x40100039, 0x40200000),
        ("pc.bios", 0x40000, 0x40220000, 0x40220010, 1, 4096, 0x4022002C, 0x40300000),
        ("pc.rom", 0x20000, 0x40340000, 0x4034000F, 1, 4096, 0x4034002B, 0x40400000),
        ("/rom@etc/table-loader", 0x1000, 0x40420000, 0x4042001E, 1, 4096, 0x4042003A, 0x40500000),
        ("/rom@etc/acpi/rsdp", 0x1000, 0x40501000, 0x4050101B, 1, 4096, 0x40501037, 0x40600000),
    ]  # fmt: skip
    assert found.blocks[0].bitmap_end == 0x86 + 0x8000
    (timer,) = found.devices
    assert (timer.name, timer.section_id, timer.version_id, timer.offset) == ("timer", 0, 2, 0x406010A2)
    assert timer.offset + timer.length == 0x40609038
    assert found.warnings == ()
    first = found.blocks[0]
    bitmap = PageBitmap.from_bytes(file.read(first.header.bitmap_offset, 0x8000), first.block.pages)
    assert [page for page in range(64) if bitmap.test(page)] == [0, 6, *range(16, 22), 31, 32]


def test_a_file_of_a_gibibyte_is_read_by_its_heads_alone():
    file = worked_example()
    parse(file.read, file.size)
    assert file.bytes_read < 2 * MIB


# --- every legal dialect

DIALECTS = {
    "plain": stream(M, BIOS),
    "one block of one page": stream(BIOS),
    "63 pages": stream(Block(picture="A" * 63)),
    "64 pages": stream(Block(picture="A" * 64)),
    "65 pages": stream(Block(picture="A" * 65)),
    "all zero": stream(Block(picture="0" * 65)),
    "zeros behind set bits": stream(Block(picture=".A.")),
    "stale pages behind cleared bits": stream(Block(picture="-A-")),
    "pages at 1 MiB": stream(M, BIOS, alignment=MIB),
    "reversed": stream(BIOS, M),
    "header version 0": stream(M, BIOS, header_version=0),
    "no capability order": stream(M, capabilities=("events", "mapped-ram")),
    "named as it was proposed": stream(M, capabilities=("fixed-ram",)),
    "uuid": stream(M, uuid=bytes(range(16))),
    "page bits": stream(M, BIOS, page_bits=12),
    "64 KiB pages": stream(Block(picture="A0C"), page_bits=16, alignment=1 << 16),
    "no VM description": stream(M, BIOS, vmdesc=None),
    "no VM description, no devices": stream(M, BIOS, vmdesc=None, devices=()),
    "no devices": stream(M, BIOS, devices=()),
    "no part, no command, no end": stream(M, BIOS, parts=0, command=False, end=False),
    "many parts": stream(M, BIOS, parts=500),
    "fillers": stream(M, BIOS, fillers=3),
    "padded": stream(M, BIOS, tail=bytes(4095)),
    "padded, no VM description": stream(M, BIOS, vmdesc=None, tail=bytes(511)),
    "early sections": stream(M, early=(Section(name="virtio-mem-early", body=b"x" * 99),)),
    "another that is saved in steps": stream(
        M, early=(Section(name="dirty-bitmap", kind=START, body=b"a", more=(b"bb", b"", b"ccc")),)
    ),
    "long device sections": stream(M, devices=[Section(name=f"d{i}", body=b"~" * 70_000) for i in range(5)]),
    "a huge device section": stream(M, devices=[Section(name="vfio", body=b"\x7e\0\0\0" * 700_000)]),
    "more devices than an id byte holds": stream(M, devices=[Section(name="cpu", instance=i) for i in range(700)]),
    "VM description of 200 processors": stream(M, vmdesc=b'{"devices": [' + b" " * 1_600_000 + b"]}"),
    "11.0, absent first": stream(Block(picture="AB", absent=True), BIOS, capabilities=BOTH),
    "11.0, absent last": stream(BIOS, Block(picture="AB", absent=True), capabilities=BOTH),
    "11.0, all absent": stream(Block(picture="AB", absent=True), capabilities=BOTH),
    "both capabilities, nothing absent": stream(
        Block(picture="AB"), Block(name="pc.bios", picture="B", address=0xFFFC0000), capabilities=BOTH
    ),
    "bitmap at the end": stream(Block(picture="AB", bitmap_at=16 * PAGE), BIOS),
    "stream ends before the pages": stream(
        Block(name="big", picture="AB0-", pages_at=16 * PAGE), Block(name="s", picture="C", pages_at=PAGE)
    ),
}
# In the last one the record of "s" follows the pages of "big", and the rest of the stream follows the page of "s".


@pytest.mark.parametrize("made", DIALECTS.values(), ids=DIALECTS.keys())
def test_every_dialect_is_read(made):
    found = read(made)
    assert {"m", "pc.bios", "big", "s"} >= {each.block.idstr for each in found.blocks}
    assert (found.base, found.size, found.trailer) == (0, len(made.data), None)
    assert found.stream_end == made.marks["stream_end"]
    for saved in found.blocks:
        name = saved.block.idstr
        assert saved.record_offset == made.marks[f"record:{name}"]
        assert saved.header_offset == made.marks[f"header:{name}"]
        if not saved.absent:
            assert saved.header.bitmap_offset == made.marks[f"bitmap:{name}"]
            assert saved.header.pages_offset == made.marks[f"pages:{name}"]


@pytest.mark.parametrize("base", [1, 123, PAGE, MIB + 1])
@pytest.mark.parametrize("alignment", [PAGE, MIB])
def test_a_stream_behind_a_prefix_has_absolute_offsets(base, alignment):
    made = stream(M, BIOS, base=base, alignment=alignment)
    found = read(made, base)
    assert found.base == base
    assert [contents(made, each) for each in found.blocks] == [ram_of(M.picture), ram_of("B")]
    with pytest.raises(FormatError, match="not a migration stream"):
        read(made, 0)


@pytest.mark.parametrize("picture", ["A", "0", "A0C-.", "-" * 64 + "A", "AB" * 32, "0" * 63])
def test_a_page_is_what_the_file_holds_where_its_bit_is_set_and_zero_elsewhere(picture):
    made = stream(Block(picture=picture), BIOS)
    first, second = read(made).blocks
    assert contents(made, first) == ram_of(picture)
    assert contents(made, second) == ram_of("B")


def test_blocks_are_found_by_name():
    found = read(stream(M, BIOS))
    assert found.block("pc.bios") == found.blocks[1]
    assert found.block("pc.rom") is None


def test_what_the_configuration_says_is_kept():
    made = stream(M, machine="pc-i440fx-9.0", uuid=bytes(range(16)), page_bits=12, capabilities=BOTH)
    configuration = read(made).configuration
    assert (configuration.machine, configuration.capabilities) == ("pc-i440fx-9.0", BOTH)
    assert (configuration.uuid, configuration.page_bits) == (bytes(range(16)), 12)


def test_devices_are_listed_with_their_places():
    made = stream(M, early=(Section(name="virtio-mem-early", instance=3, version=7, body=b"x"),))
    early, timer, cpu = read(made).devices
    assert (early.name, early.instance_id, early.version_id, early.section_id) == ("virtio-mem-early", 3, 7, 0x100)
    for each in (early, timer, cpu):
        assert each.offset == made.marks[f"section:{each.name}"]
        assert made.data[each.offset + each.length - 5] == 0x7E
    assert timer.offset + timer.length == cpu.offset
    assert cpu.offset + cpu.length == made.marks["eof"]


def test_a_body_that_looks_like_its_footer_does_not_end_the_section():
    body = (
        b"~\0\0\0\2"
        + b"~\0\0\0\2\x03\0\0\0\x55"
        + b"~\0\0\0\2\x04\0\0\0\x66\0"
        + b"~\0\0\0\2\x08\0\x0c"
        + b"~~\0\0\0\2~"
    )
    made = stream(M, devices=(Section(name="odd", body=body), *DEVICES))
    assert [each.name for each in read(made).devices] == ["odd", "timer", "cpu"]
    assert read(made).devices[0].length == 1 + 4 + 4 + 8 + len(body) + 5


@pytest.mark.parametrize(
    "lengths", [range(4070, 4100), range(65_500, 65_560), range((1 << 20) - 40, (1 << 20) + 10)], ids=repr
)
def test_a_footer_is_found_wherever_it_lies_in_what_is_read_ahead(lengths):
    for length in lengths:
        body = b"~\0\0\0" * (length // 4) + b"~" * (length % 4)
        made = stream(BIOS, devices=(Section(name="a", body=body), *DEVICES))
        assert [each.name for each in read(made).devices] == ["a", "timer", "cpu"], length


@pytest.mark.parametrize(
    ("made", "warnings"),
    [
        (stream(M), []),
        (stream(M, end=False), ["no RAM END section"]),
        (stream(M, vmdesc=None), ["no VM description"]),
        (stream(M, end=False, vmdesc=None), ["no RAM END section", "no VM description"]),
    ],
)
def test_what_is_unusual_but_legal_is_a_warning(made, warnings):
    found = read(made).warnings
    assert [text[: len(start)] for text, start in zip(found, warnings, strict=True)] == warnings


blocks = st.lists(
    st.builds(
        Block,
        name=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20),
        picture=st.text("ABC0.-", min_size=1, max_size=70),
        address=st.integers(0, 2**64 - 1),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda block: block.name,
)
sections = st.lists(
    st.builds(
        Section,
        name=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20).filter("ram".__ne__),
        body=st.text("~ab", max_size=50).map(str.encode),
        instance=st.integers(0, 2**32 - 1),
        version=st.integers(0, 2**32 - 1),
    ),
    max_size=4,
)
streams = st.builds(
    lambda drawn, **how: stream(*drawn, **how),
    blocks,
    machine=st.sampled_from(["pc-q35-10.0", "", "x" * 255]),
    capabilities=st.sampled_from([("mapped-ram",), BOTH]),
    base=st.sampled_from([0, 1, 123, 5000]),
    header_version=st.integers(0, 1),
    uuid=st.sampled_from([None, bytes(16)]),
    page_bits=st.sampled_from([None, 12]),
    early=sections,
    parts=st.integers(0, 3),
    fillers=st.integers(0, 2),
    command=st.booleans(),
    end=st.booleans(),
    devices=sections,
    vmdesc=st.sampled_from([None, VMDESC]),
)


@given(streams)
def test_what_was_written_is_what_is_read(made):
    found = read(made, made.marks["magic"])
    names = [mark.removeprefix("record:") for mark in made.marks if mark.startswith("record:")]
    assert [each.block.idstr for each in found.blocks] == names
    for saved in found.blocks:
        assert saved.header.bitmap_offset == made.marks[f"bitmap:{saved.block.idstr}"]
        assert saved.header.pages_offset == made.marks[f"pages:{saved.block.idstr}"]
    assert found.ram_ended == ("end" in made.marks)
    assert found.has_vmdesc == ("vmdesc" in made.marks)
    assert found.stream_end == len(made.data)
    assert {each.offset for each in found.devices} >= {
        made.marks[mark] for mark in made.marks if mark.startswith("section:")
    }


@given(blocks)
def test_the_pages_that_were_drawn_are_the_pages_that_are_read(drawn):
    made = stream(*drawn)
    found = read(made)
    assert [contents(made, each) for each in found.blocks] == [ram_of(block.picture) for block in drawn]
    for saved, block in zip(found.blocks, drawn, strict=True):
        assert made.read(saved.header.bitmap_offset, len(bitmap_of(block.picture))) == bitmap_of(block.picture)


# --- and nothing else


EMPTY = stream(M, devices=(), eof=False)
DEEP = b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"

BROKEN = {
    "empty": (Stream(b""), "not a migration stream"),
    "zeros": (Stream(bytes(9999)), "not a migration stream"),
    "no mapped-ram": (stream(M, capabilities=("x-ignore-shared",)), "Capability mapped-ram is on"),
    "no capabilities": (stream(M, capabilities=None), "Capability mapped-ram is on"),
    "unknown section type": (stream(M).patch("eos", "B", 9, at=13), "unknown savevm section type 9"),
    "subsection as section": (stream(M).patch("eos", "B", 5, at=13), "unknown savevm section type 5"),
    "unknown command": (stream(M).patch("command", "H", 12, at=1), "unknown command 12"),
    "invalid command": (stream(M).patch("command", "H", 0, at=1), "unknown command 0"),
    "command too long": (stream(M).patch("command", "H", 0xFFFF, at=3), "file ends in command: expected 65535"),
    "unknown section": (stream(M).patch("part", "I", 77, at=1), "unknown savevm section 77"),
    "ram footer gone": (stream(M).patch("eos", "B", 0, at=8), "missing section footer for 'ram'"),
    "ram footer of another": (stream(M).patch("eos", "I", 2, at=9), "missing section footer for 'ram'"),
    "end footer gone": (stream(M).patch("end", "B", 0, at=13), "missing section footer for 'ram'"),
    "words in a part": (stream(M).patch("part", "Q", 8, at=5), "unexpected RAM flags 0x8"),
    "ram version 3": (stream(M).patch("ram", "I", 3, at=13), "unsupported version 3 for 'ram' v4"),
    "ram version 5": (stream(M).patch("ram", "I", 5, at=13), "unsupported version 5 for 'ram' v4"),
    "ram as FULL": (stream(M).patch("ram", "B", FULL), "wrong kind of ram section"),
    "two ram sections": (stream(M, devices=(Section(name="ram", kind=START, version=4),)), "a second or"),
    "no ram section": (stream().cut(stream().marks["ram"]).patch(0, ""), "file ends in section type"),
    "an id twice": (stream(M, devices=(Section(name="a", id=1),)), "section id 1 is already that of 'ram'"),
    "device name not printable": (stream(M, devices=(Section(name="a\n"),)), "section name is not printable"),
    "no end mark": (stream(M, eof=False), "footer is missing"),
    "no end mark, no device": (stream(M, eof=False, devices=()), "file ends in section type"),
    "device footer gone": (stream(M, devices=(Section(name="a", id=7),)).patch("eof", "B", 0, at=-5), "its footer is"),
    "VM description cut off": (stream(M).cut(len(stream(M).data) - 1), "file ends in VM description"),
    "VM description too long": (stream(M).patch("vmdesc", "I", len(VMDESC) + 1, at=1), "file ends in VM description"),
    "VM description huge": (stream(M).patch("vmdesc", "I", 0xFFFFFFFF, at=1), "file ends in VM description"),
    "VM description not JSON": (stream(M, vmdesc=b'{"a": '), "is not JSON"),
    "VM description not UTF-8": (stream(M, vmdesc=b'{"\xff": 1}'), "is not JSON"),
    "VM description an array": (stream(M, vmdesc=b"[]"), "not a JSON object"),
    "VM description empty": (stream(M, vmdesc=b""), "is not JSON"),
    "VM description deep": (stream(M, vmdesc=DEEP), "is not JSON"),
    "VM description with a huge number": (stream(M, vmdesc=b'{"a": ' + b"1" * 100_000 + b"}"), "is not JSON"),
    "trailer announced": (stream(M, vmdesc=b'{"parallel-fixedram": 1}'), "the trailer that the stream announces"),
    "something behind it": (stream(M, tail=b"\0\0\1"), "3 bytes follow the stream and are not a trailer"),
    "something far behind it": (stream(M, tail=bytes(9999) + b"\1" + bytes(99)), "10000 bytes follow the stream"),
    "another stream behind it": (stream(M, tail=stream(M).data), "bytes follow the stream"),
    "bitmap in the device sections": (
        stream(M).patch("header:m", "Q", stream(M).marks["section:cpu"] + 12, at=12),
        "the bitmap of block 'm' begins inside the stream after the last block",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_refused_with_place_and_reason(made, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        read(made)
    assert caught.value.offset is not None
    assert str(caught.value).startswith(f"at {caught.value.offset:#x}: ")


@pytest.mark.parametrize("base", [1, 9, 10_000_000, 1 << 62])
def test_a_stream_asked_for_behind_the_end_is_refused(base):
    made = stream(M)
    with pytest.raises(FormatError, match="not a migration stream"):
        read(made, base + len(made.data) - 9)


def test_the_page_array_of_one_block_may_not_hold_the_rest_of_the_stream():
    lying = stream(Block(picture="A" * 8), Block(name="s", picture="C", pages_at=3 * PAGE))
    with pytest.raises(FormatError, match="begins inside the page array of block 'm'"):
        read(lying)


def test_a_file_of_ours_that_ends_at_its_end_mark_is_cut_off():
    made = stream(M, ram_id=0x52414D00, vmdesc=None)
    with pytest.raises(FormatError, match="the trailer that the stream announces is missing or cut off"):
        read(made)


@pytest.mark.parametrize(
    "made",
    [
        stream(Block(picture="A0"), BIOS, uuid=bytes(16), fillers=1),
        stream(Block(picture="AB", absent=True), Block(name="s", picture="C"), capabilities=BOTH, base=99),
        stream(BIOS, early=(Section(name="virtio-mem-early", body=b"x" * 30),), parts=2, devices=()),
    ],
    ids=["plain", "11.0", "early"],
)
def test_a_file_of_qemus_cut_anywhere_is_refused(made):
    after_eof = made.marks["eof"] + 1  # legal: -machine suppress-vmdesc=on ends there
    spared = set()
    for mark, start in made.marks.items():
        if mark.startswith("pages:"):
            spared |= set(range(start + 1, start + PAGE)) - set(range(start, start + PAGE, 97))
    for length in some_of(sorted(set(range(len(made.data))) - spared - {after_eof}), 29):
        with pytest.raises(FormatError):
            read(made.cut(length), made.marks["magic"])
    assert not read(made.cut(after_eof), made.marks["magic"]).has_vmdesc


def test_any_flipped_bit_outside_the_pages_gives_a_value_or_a_format_error():
    made = stream(Block(picture="A0"), BIOS, uuid=bytes(16))
    starts = [made.marks["magic"], made.marks["record:pc.bios"], made.marks["eos"]]
    ends = [made.marks["bitmap:m"] + 8, made.marks["bitmap:pc.bios"] + 8, len(made.data)]
    refused = 0
    offsets = some_of([each for start, end in zip(starts, ends, strict=True) for each in range(start, end)], 5)
    for offset in offsets:
        for bit in range(8):
            try:
                read(made.patch(offset, "B", made.data[offset] ^ (1 << bit)))
            except FormatError:
                refused += 1
    assert refused > 3 * len(offsets)


@given(st.binary(max_size=400), st.sampled_from(["magic", "ram", "total", "record:m", "header:m", "eos", "end", "eof"]))
def test_any_bytes_after_a_good_beginning_are_a_file_or_a_format_error(data, mark):
    made = stream(Block(picture="A0"), BIOS)
    with suppress(FormatError):
        read(Stream(made.data[: made.marks[mark]] + data))


@given(st.binary(max_size=400), st.integers(0, 500))
def test_any_bytes_are_a_file_or_a_format_error(data, base):
    for start in (b"", b"QEVM\0\0\0\3\7"):
        with suppress(FormatError):
            read(Stream(start + data), base)


@given(streams, st.data())
def test_any_change_gives_a_file_or_a_format_error(made, data):
    marks = sorted(made.marks)
    for _ in range(data.draw(st.integers(1, 3))):
        mark, at = data.draw(st.sampled_from(marks)), data.draw(st.integers(0, 40))
        layout, top = data.draw(st.sampled_from([("B", 0xFF), ("H", 0xFFFF), ("I", 2**32 - 1), ("Q", 2**64 - 1)]))
        value = data.draw(st.sampled_from([0, 1, top, top - 1, top // 2 + 1]) | st.integers(0, top))
        made = made.patch(mark, layout, value, at=at)
    if data.draw(st.booleans()):
        made = made.cut(data.draw(st.integers(0, len(made.data))))
    with suppress(FormatError):
        found = read(made, made.marks["magic"])
        assert found.stream_end <= len(made.data)
        assert all(max(each.bitmap_end, each.pages_end) <= len(made.data) for each in found.blocks if not each.absent)


@pytest.mark.parametrize(
    ("ours", "target"),
    [
        ({"trailer": 1, "target": "aarch64"}, "aarch64"),
        ({"trailer": 1}, ""),
        ({"trailer": 1, "target": 7}, ""),
        ({"trailer": 1, "target": ["arm"]}, ""),
        ({"trailer": 1, "target": "arm\n"}, ""),
        ({"trailer": 1, "target": "ärm"}, ""),
        ("trailer", ""),
        (None, ""),
    ],
)
def test_a_file_of_ours_may_say_of_which_architecture_it_is(ours, target):
    vmdesc = json.dumps({"page_size": 4096, "devices": [], "parallel-fixedram": ours}).encode()
    made = our_file(M, vmdesc=vmdesc)
    assert parse(made.read, len(made.data)).target == target


def test_a_file_by_qemu_does_not_say_of_which_architecture_it_is():
    made = stream(M, machine="virt-10.0", page_bits=12)
    assert parse(made.read, len(made.data)).target == ""


@pytest.mark.parametrize("host_page", [MIB // 16, 2 * MIB, 512 * MIB, 1 << 30])
@pytest.mark.parametrize("capabilities", [("mapped-ram",), ("x-ignore-shared", "mapped-ram")])
def test_a_file_saved_with_postcopy_and_huge_pages_is_refused_for_that(host_page, capabilities):
    made = stream(Block(), replace(M, name="huge", host_page=host_page), capabilities=capabilities)
    with pytest.raises(FormatError, match=r"block 'huge': a host page size comes .*postcopy-ram"):
        parse(made.read, len(made.data))
