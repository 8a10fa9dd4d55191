import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streamwriter import Block, Stream, stream

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format.stream import (
    Configuration,
    Cursor,
    pack_counted,
    pack_footer,
    pack_head,
    pack_section_head,
    pack_vmdesc,
    read_head,
)

HEAD = bytes.fromhex("51 45 56 4d 00 00 00 03 07")
Q35 = bytes.fromhex("00 00 00 0b 70 63 2d 71 33 35 2d 31 30 2e 30")
CAPABILITIES = b"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01"
MAPPED_RAM = bytes.fromhex("0a 6d 61 70 70 65 64 2d 72 61 6d")
VIRT = b"\x00\x00\x00\x09virt-10.0"
PAGE_BITS = b"\x05\x1econfiguration/target-page-bits\x00\x00\x00\x01"
UUID = b"\x05\x12configuration/uuid\x00\x00\x00\x01"


def cursor_over(data, offset=0, end=None):
    return Cursor(Stream(data).read, len(data) if end is None else end, offset)


HEADS = [
    (
        HEAD + Q35 + CAPABILITIES + bytes.fromhex("00 00 00 01") + MAPPED_RAM,
        Configuration(machine="pc-q35-10.0", capabilities=("mapped-ram",)),
    ),
    (
        HEAD + Q35 + CAPABILITIES + bytes.fromhex("00 00 00 02") + b"\x0fx-ignore-shared" + MAPPED_RAM,
        Configuration(machine="pc-q35-10.0", capabilities=("x-ignore-shared", "mapped-ram")),
    ),
    (
        HEAD + bytes.fromhex("00 00 00 00") + CAPABILITIES + bytes.fromhex("00 00 00 00"),
        Configuration(machine=""),
    ),
    (
        HEAD
        + VIRT
        + PAGE_BITS
        + bytes.fromhex("00 00 00 0c")
        + CAPABILITIES
        + bytes.fromhex("00 00 00 01")
        + MAPPED_RAM,
        Configuration(machine="virt-10.0", capabilities=("mapped-ram",), page_bits=12),
    ),
]


@pytest.mark.parametrize(("data", "value"), HEADS)
def test_a_head_is_written_and_read_as_qemu_has_it(data, value):
    assert pack_head(value.machine, value.capabilities, value.page_bits) == data
    cursor = cursor_over(data + b"rest")
    assert read_head(cursor) == value
    assert cursor.offset == len(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (HEAD + Q35, Configuration(machine="pc-q35-10.0")),
        (
            HEAD + Q35 + PAGE_BITS + bytes.fromhex("00 00 00 0c"),
            Configuration(machine="pc-q35-10.0", page_bits=12),
        ),
        (
            HEAD + Q35 + CAPABILITIES + bytes.fromhex("00 00 00 01") + MAPPED_RAM + UUID + bytes(range(16)),
            Configuration(machine="pc-q35-10.0", capabilities=("mapped-ram",), uuid=bytes(range(16))),
        ),
    ],
)
def test_heads_that_only_qemu_writes_are_read(data, value):
    assert read_head(cursor_over(data)) == value


def test_a_head_in_the_middle_of_a_file_is_read():
    data, value = HEADS[0]
    assert read_head(cursor_over(b"prefix." + data, 7)) == value


@pytest.mark.parametrize(
    ("made", "data"),
    [
        (pack_counted("ram"), b"\x03ram"),
        (pack_counted(""), b"\x00"),
        (pack_counted("x" * 255), b"\xff" + b"x" * 255),
        (pack_section_head(1, 1, "ram", 0, 4), bytes.fromhex("01 00000001 03 72616d 00000000 00000004")),
        (pack_section_head(4, 0, "timer", 0, 2), bytes.fromhex("04 00000000 05 74696d6572 00000000 00000002")),
        (pack_footer(1), bytes.fromhex("7e 00000001")),
        (pack_vmdesc("{}"), bytes.fromhex("06 00000002 7b7d")),
    ],
)
def test_a_piece_of_a_stream_has_qemus_bytes(made, data):
    assert made == data


@pytest.mark.parametrize(
    ("made", "offset", "reason"),
    [
        (Stream(b""), 0, "not a migration stream"),
        (Stream(b"QEVM\0\0\0"), 0, "not a migration stream"),
        (Stream(b"MVEQ\3\0\0\0" + bytes(50)), 0, "not a migration stream"),
        (Stream(b"LibvirtQemudSave" + bytes(100)), 0, "not a migration stream"),
        (stream().patch("version", "I", 2), 4, "unsupported migration stream version 2 .*obsolete"),
        (stream().patch("version", "I", 4), 4, "unsupported migration stream version 4, expected 3"),
        (stream().patch("version", "B", 1, at=4), 8, "configuration section missing"),
        (stream().patch("machine", "I", 256), 9, "machine name of 256 bytes, at most 255"),
        (stream().patch("machine", "I", 0xFFFFFFFF), 9, "machine name of 4294967295 bytes"),
        (stream().patch("machine", "B", 0x0A, at=4), 13, "machine name is not printable"),
        (stream().patch("machine", "B", 0xE9, at=4), 13, "machine name is not printable"),
        (stream().patch("capabilities", "I", 2, at=28), 0x34, "configuration/capabilities: unknown version 2"),
        (stream().patch("capabilities", "I", 65, at=32), 0x38, "65 recorded capabilities, at most 64"),
        (stream().patch("capabilities", "I", 0xFFFFFFFF, at=32), 0x38, "4294967295 recorded capabilities"),
        (stream().patch("capabilities", "B", 0, at=37), 0x3D, "capability name is not printable"),
        (stream().patch("capabilities", "B", ord("C"), at=2), 0x18, "unknown configuration subsection"),
        (stream(page_bits=9), None, "target page bits 9, expected 10 to 16"),
        (stream(page_bits=12).patch("page_bits", "I", 0xFFFFFFFF, at=36), None, "target page bits 4294967295"),
        (stream(page_bits=12).patch("page_bits", "I", 0, at=36), None, "target page bits 0"),
    ],
)
def test_a_head_that_is_wrong_is_refused_with_place_and_reason(made, offset, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        read_head(cursor_over(made.data))
    assert caught.value.offset is not None
    assert offset is None or caught.value.offset == offset


@pytest.mark.parametrize("made", [stream(Block(), uuid=bytes(16), page_bits=12)])
def test_a_head_cut_anywhere_is_refused(made):
    whole = made.marks["ram"]
    complete = {made.marks["page_bits"], made.marks["capabilities"], made.marks["capabilities"] + 47, whole}
    for length in set(range(whole)) - complete:
        with pytest.raises(FormatError):
            read_head(cursor_over(made.data[:length]))


def test_a_cursor_beyond_the_end_reads_nothing():
    asked = []

    def read(offset, length):
        asked.append(length)
        assert length >= 0
        return b""

    cursor = Cursor(read, 10, 20)
    assert cursor.peek(5) == b""
    with pytest.raises(FormatError, match="expected 8 bytes, got 0"):
        cursor.be64("word")
    with pytest.raises(FormatError, match="expected 0 bytes"):
        cursor.skip(0, "nothing")


def test_a_cursor_says_what_is_missing_and_where():
    cursor = cursor_over(b"abcdef", 2)
    with pytest.raises(FormatError, match="at 0x2: file ends in header: expected 28 bytes, got 4"):
        cursor.take(28, "header")
    assert cursor.offset == 2


def test_a_cursor_does_not_read_past_the_end_it_was_given():
    cursor = cursor_over(b"abcdef", 0, end=3)
    assert cursor.peek(100) == b"abc"
    with pytest.raises(FormatError):
        cursor.take(4, "it")


def test_a_file_that_shrinks_under_the_cursor_is_a_format_error():
    cursor = Cursor(Stream(b"abc").read, 1000, 0)
    with pytest.raises(FormatError, match="expected 8 bytes, got 3"):
        cursor.be64("word")


numbers = st.integers(0, 200_000)
moves = st.lists(
    st.tuples(st.sampled_from(["peek", "take", "skip"]), st.integers(0, 20) | numbers)
    | st.tuples(st.sampled_from(["u8", "be16", "be32", "be64"]), st.none())
    | st.tuples(st.just("seek"), numbers),
    max_size=30,
)
WIDTHS = {"u8": 1, "be16": 2, "be32": 4, "be64": 8}
DATA = bytes((i * 7919 >> 5) & 0xFF for i in range(150_000))


@given(st.integers(0, len(DATA)), moves)
def test_a_cursor_reads_what_slicing_gives(end, steps):
    cursor, at = cursor_over(DATA, 0, end), 0
    for step, number in steps:
        if step == "seek":
            cursor.offset = at = number
            continue
        length = WIDTHS.get(step, number)
        left = DATA[at : min(at + length, end)]
        if step == "peek":
            assert cursor.peek(length) == left
        elif len(left) < length or at > end:
            arguments = (number, "it") if step in ("take", "skip") else ("it",)
            if step == "take" and length == 0:
                continue
            with pytest.raises(FormatError):
                getattr(cursor, step)(*arguments)
        elif step == "take":
            assert cursor.take(length, "it") == left
            at += length
        elif step == "skip":
            cursor.skip(length, "it")
            at += length
        else:
            assert getattr(cursor, step)("it") == int.from_bytes(left, "big")
            at += length
        assert cursor.offset == at


@given(st.integers(1, 300))
def test_reading_byte_by_byte_asks_the_file_seldom(pieces):
    asked = []

    def read(offset, length):
        asked.append(length)
        return DATA[offset : offset + length]

    cursor = Cursor(read, len(DATA))
    for _ in range(pieces * 10):
        cursor.u8("byte")
    assert len(asked) <= 1


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=255))
def test_a_counted_text_goes_out_and_in(text):
    assert cursor_over(pack_counted(text)).counted_text("text") == text


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_a_format_error(data):
    for start in (b"", HEAD, HEAD + Q35, HEAD + Q35 + CAPABILITIES):
        try:
            value = read_head(cursor_over(start + data))
        except FormatError as error:
            place, machine = error.offset, ""
        else:
            place, machine = 0, value.machine
        assert place is not None
        assert machine.isprintable() or not machine
