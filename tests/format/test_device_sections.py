"""Device sections as a running QEMU hands them out: no length anywhere, and bodies that a guest may have written."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streamwriter import DEVICES, PAGE, START, VMDESC, Block, Section, Stream, device_bytes, our_file

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.format import device_sections
from parallel_fixedram.format.device_sections import MAX_DEVICES, read_device_sections
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.migration_file import parse, read_clone_blocks
from parallel_fixedram.format.vmdesc import describe_device

FIRST, LAST = Section(name="serial", id=7, body=b"before"), Section(name="timer", id=9, body=b"t" * 24)
FOOTER = b"\x7e\0\0\0\x08"


def head(section_id, name, kind=4):
    return struct.pack(">BIB", kind, section_id, len(name)) + name + bytes(8)


VMDESC_OF_NOBODY = b"\6" + struct.pack(">I", len(VMDESC)) + VMDESC
FORGED = {
    "its footer": FOOTER,
    "its footer, many times": FOOTER * 300,
    "its footer and the head of the next section": FOOTER + head(9, b"timer"),
    "its footer and the head of a section of the same name": FOOTER + head(10, b"odd"),
    "its footer and a whole section": FOOTER + head(10, b"usb") + b"\x7e\0\0\0\x0a",
    "its footer and a whole section, and again": (FOOTER + head(10, b"usb") + b"\x7e\0\0\0\x0a") * 3 + FOOTER,
    "its footer and the ram section": FOOTER + head(11, b"ram", kind=1),
    "its footer and a section that goes on": FOOTER + b"\2\0\0\0\7",
    "its footer and a command over its real one": FOOTER + b"\x08\0\x01\0\x12after",
    "its footer and the end mark": FOOTER + b"\0",
    "its footer and the end mark and zeros": FOOTER + b"\0\0\0\0",
    "its footer, the end mark and a description": FOOTER + b"\0" + VMDESC_OF_NOBODY,
    "a description": VMDESC_OF_NOBODY,
    "a trailer's magic": b"FIXEDRAM" * 9,
    "half a footer": b"~~\0\0\0~~\0\0\0\x08",
}


def divided(sections):
    return [(each.name, each.instance_id, each.version_id, each.section_id, each.body_length)
            for each in read_device_sections(device_bytes(sections))]  # fmt: skip


def expected(sections):
    return [(each.name, each.instance, each.version, each.id, len(each.body)) for each in sections]


def around(body, place):
    """Sections of which one, at ``place``, has that body."""
    forged = Section(name="odd", id=8, instance=3, version=4, body=b"before " + body + b" after")
    return {"first": (forged, FIRST, LAST), "middle": (FIRST, forged, LAST), "last": (FIRST, LAST, forged)}[place]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("body", FORGED.values(), ids=FORGED.keys())
def test_what_a_guest_puts_into_a_body_does_not_end_its_section(body, place):
    sections = around(body, place)
    assert divided(sections) == expected(sections)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("body", FORGED.values(), ids=FORGED.keys())
def test_a_file_of_ours_with_a_forged_body_is_read_as_it_was_written(body, place):
    """What the save found out stands in the VM description, which no guest can reach."""
    sections = around(body, place)
    made = our_file(Block(), Block(name="bios"), alignment=PAGE, devices=sections, clone=[Block(name="bios")])
    tail = FileLayout.plan("m", [RAMBlock(idstr="m", used_length=PAGE)]).tail(device_bytes(sections))
    assert tail in made.data
    found = parse(made.read, len(made.data))
    assert [(each.name, each.section_id, each.body_length) for each in found.devices] == [
        (each.name, each.id, len(each.body)) for each in sections
    ]
    assert [each.offset for each in found.devices] == [made.marks[f"section:{each.name}"] for each in sections]
    assert [each.block.idstr for each in read_clone_blocks(made.read, found.trailer)] == ["bios"]


def test_a_body_that_forges_an_earlier_section_still_gives_a_file_that_can_be_read():
    """Two divisions use up every byte then; which one is taken matters to nobody, but the file has to hold it."""
    forged = FOOTER + head(9, b"odd") + FOOTER + b"\0\0" + b"\x7e\0\0\0\x09\0\0"
    sections = (Section(name="odd", id=8, body=b"x" * len(forged)), Section(name="timer", id=9, body=forged))
    data = device_bytes(sections)
    found = read_device_sections(data)
    assert sum(each.length for each in found) == len(data)
    layout = FileLayout.plan("m", [RAMBlock(idstr="m", used_length=PAGE)])
    plain = our_file(Block(), devices=(Section(name="placeholder"),), machine="m").data
    stream_of_it = plain[: layout.ram_end] + layout.tail(data).replace(b"parallel-fixedram", b"somebody-else-did")
    made = Stream(stream_of_it.replace(b"RAM\0", b"\0\0\1\1"))
    assert [(each.name, each.length) for each in parse(made.read, len(made.data)).devices] == [
        (each.name, each.length) for each in found
    ]


sections_of_any_bytes = st.lists(
    st.builds(
        Section,
        name=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255).filter("ram".__ne__),
        body=st.lists(st.sampled_from([FOOTER, head(9, b"timer"), b"~", b"\0", b"\4", b"ab", bytes(70)])).map(b"".join),
        instance=st.integers(0, 2**32 - 1),
        version=st.integers(0, 2**32 - 1),
        id=st.integers(0, 2**32 - 1).filter((0x52414D00).__ne__),
    ),
    max_size=5,
    unique_by=lambda each: each.id,
)


@given(sections_of_any_bytes)
def test_every_byte_is_in_one_section_and_no_id_comes_twice(sections):
    data = device_bytes(sections)
    found = read_device_sections(data)
    assert [each.offset for each in found] == [sum(each.length for each in found[:i]) for i in range(len(found))]
    assert sum(each.length for each in found) == len(data)
    assert len({each.section_id for each in found}) == len(found)


@given(st.binary(max_size=200), st.integers(0, 200), st.binary(max_size=6))
def test_any_bytes_are_sections_or_a_format_error(data, at, change):
    good = device_bytes(around(b"", "middle"))
    for tried in (data, good[:at] + change + good[at + len(change) :], good[:at], good + data):
        with suppress(FormatError):
            assert sum(each.length for each in read_device_sections(tried)) == len(tried)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        device_bytes(DEVICES) + b"\0",
        device_bytes(DEVICES)[:-1],
        device_bytes(DEVICES)[1:],
        b"x" + device_bytes(DEVICES),
        device_bytes(DEVICES) + b"\x08\0\x0b\0\0",
        device_bytes((Section(name="ram", version=4),)),
        device_bytes((Section(name="a", kind=START),)),
        device_bytes((Section(name="a", id=0x52414D00),)),
        device_bytes((Section(name="a\n"),)),
        device_bytes((Section(name=""),)),
    ],
)
def test_bytes_that_are_no_whole_device_sections_are_refused(data):
    with pytest.raises(FormatError, match="not whole device sections"):
        read_device_sections(data)
    with pytest.raises(FormatError):
        FileLayout.plan("m", [RAMBlock(idstr="m", used_length=PAGE)]).tail(data)


def test_no_bytes_are_no_sections():
    assert read_device_sections(b"") == ()


def test_there_are_at_most_so_many(monkeypatch):
    monkeypatch.setattr(device_sections, "MAX_DEVICES", 100)
    many = [Section(name="cpu", instance=i, id=i) for i in range(101)]
    assert len(read_device_sections(device_bytes(many[:100]))) == 100
    with pytest.raises(FormatError, match="more than 100"):
        read_device_sections(device_bytes(many))
    assert MAX_DEVICES > 100


class Counted(bytes):
    """Bytes that count how many of them are copied out."""

    copied = 0

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if isinstance(key, slice):
            Counted.copied += len(found)
        return found


@pytest.mark.parametrize("piece", [FOOTER + head(9, b"timer"), FOOTER + head(8, b"x" * 9), b"\x7e\4\4\4\4\4"])
def test_the_work_grows_with_the_length_and_not_with_its_square(piece):
    work = []
    for count in (500, 4000):
        Counted.copied = 0
        found = read_device_sections(Counted(device_bytes(around(piece * count, "middle"))))
        assert len(found) == 3
        work.append(Counted.copied)
    assert work[1] < 9 * work[0]


def test_a_device_is_described_as_one_opaque_field_behind_its_head():
    section = Section(name="x" * 255, id=2**32 - 1, instance=2**32 - 1, version=7, body=bytes(99))
    (found,) = read_device_sections(device_bytes((section,)))
    assert found.body_length == 99
    assert found.length == 1 + 4 + 1 + 255 + 4 + 4 + 99 + 5
    assert describe_device(found.name, found.instance_id, found.version_id, found.body_length) == {
        "name": "x" * 255,
        "instance_id": 2**32 - 1,
        "vmsd_name": "x" * 255,
        "version": 7,
        "fields": [{"name": "body", "type": "buffer", "size": 99}],
    }
