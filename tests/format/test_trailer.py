import random
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import some_of
from support.laid_out_file import digest, saved_file
from support.streamwriter import (
    DEVICES,
    MIB,
    PAGE,
    Block,
    Section,
    Stream,
    device_bytes,
    our_file,
    page_digests,
    pages_of,
    stream,
    stream_digests,
    trailer,
)

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.format import mapped_ram
from parallel_fixedram.format.migration_file import parse
from parallel_fixedram.format.trailer import (
    DIGEST_BYTES,
    FOOTER_BYTES,
    TrailerLayout,
    uncovered,
)
from parallel_fixedram.format.trailer_reader import has_trailer, read_trailer

M = Block(name="m", picture="A0C")
BIOS = Block(name="pc.bios", picture="B")
SMALL = (M, BIOS, Block(name="z", picture="0" * 65))
DEVICE_BYTES = device_bytes(DEVICES)


def read(made, base=0):
    made = made if isinstance(made, Stream) else Stream(made)
    return parse(made.read, len(made.data), base)


# --- what a save writes


@pytest.mark.parametrize("base", [0, 123, MIB])
@pytest.mark.parametrize("drawn", [(BIOS,), (M, BIOS), SMALL])
def test_a_file_of_ours_has_the_bytes_that_its_description_says(drawn, base):
    made = our_file(*drawn, base=base)
    assert saved_file(*drawn, base=base) == made.data
    assert len(made.data) % PAGE == 0


def test_device_sections_go_between_ram_and_the_end_mark():
    made = our_file(M, BIOS, devices=DEVICES, machine="pc-q35-10.0")
    assert saved_file(M, BIOS, devices=DEVICE_BYTES, machine="pc-q35-10.0") == made.data


def test_a_guest_may_have_more_devices_than_an_id_byte_holds():
    many = [Section(name="cpu", instance=i, id=i) for i in range(700)]
    data = saved_file(M, devices=device_bytes(many))
    assert data == our_file(M, devices=many).data
    assert [each.section_id for each in read(data).devices] == list(range(700))


@pytest.mark.parametrize("base", [0, 123, MIB])
@pytest.mark.parametrize("pages", [1, 63, 64, 65, 128, 600])
def test_a_file_of_ours_is_read_back(pages, base):
    picture = ("A0" * pages)[:pages]
    data = saved_file(Block(name="m", picture=picture), BIOS, base=base, devices=DEVICE_BYTES)
    found = read(data, base)
    assert [each.block.idstr for each in found.blocks] == ["m", "pc.bios"]
    assert [each.name for each in found.devices] == ["timer", "cpu"]
    assert (found.warnings, found.ram_ended) == ((), True)
    trailer = found.trailer
    assert (trailer.base, trailer.file_length, trailer.table_pages) == (base, len(data), {0: pages, 1: 1})
    for page, letter in enumerate(picture):
        at = trailer.tables[0] + page * 8
        assert int.from_bytes(data[at : at + 8], "little") == (0 if letter == "0" else digest(pages_of(letter)))
    for extent in trailer.extents:
        assert digest(data[extent.offset : extent.offset + extent.length]) == extent.digest
    assert digest(data[trailer.offset : -8]) == trailer.digest


def test_every_byte_of_a_file_has_exactly_one_digest():
    found = read(saved_file(*SMALL, base=123), 123)
    places = [(each.offset, each.offset + each.length) for each in found.trailer.extents]
    places += [(each.header.pages_offset, each.pages_end) for each in found.blocks]
    places.append((found.trailer.offset, found.size - DIGEST_BYTES))
    places.sort()
    assert places[0][0] == 123
    assert all(end == start for (_, end), (start, _) in pairwise(places))


sizes = st.sampled_from([1, 63, 64, 65, 128, 500, 512]) | st.integers(1, 1 << 30)


@given(st.integers(0, 1 << 50), st.lists(sizes, min_size=1, max_size=5))
def test_the_parts_of_a_trailer_follow_each_other_and_fill_it(stream_end, pages):
    blocks = [RAMBlock(idstr=str(i), used_length=count * PAGE) for i, count in enumerate(pages)]
    plan = TrailerLayout.plan(base=7, stream_end=stream_end, blocks=blocks)
    at = (stream_end + PAGE - 1) // PAGE * PAGE  # counted byte by byte
    assert plan.offset == at
    assert plan.parts[0] == (at, struct.pack(">IIQ", 1, 0, 24 * (len(pages) + 1)))
    assert plan.extents_offset == at + 16
    at += 16 + 24 * (len(pages) + 1)
    for number, count in enumerate(pages):
        assert plan.parts[1 + number] == (at, struct.pack(">IIQII", 2, 0, 8 + 8 * count, number, 0))
        assert plan.tables[number] == at + 24
        at += 24 + 8 * count
    padding = -(at + 16 + 48) % PAGE
    assert plan.parts[-1] == (at, struct.pack(">IIQ", 0, 0, padding))
    at += 16 + padding
    assert (plan.footer_offset, plan.file_length) == (at, at + 48)
    assert plan.file_length % PAGE == 0
    assert plan.pack_footer() == struct.pack(">8sIIQQQ", b"FIXEDRAM", 1, len(pages) + 2, 7, plan.offset, at + 48)


@given(st.data())
def test_uncovered_is_every_byte_that_is_in_no_page_array(data):
    blocks, at = [], data.draw(st.integers(0, 3))
    start = at
    for number in range(data.draw(st.integers(0, 3))):
        at += data.draw(st.integers(0, 3))
        count = data.draw(st.integers(1, 3))
        header = mapped_ram.MappedRamHeader(page_size=1, bitmap_offset=99, pages_offset=at)
        block = RAMBlock(idstr=str(number), used_length=count, page_size=1, host_page_size=1)
        blocks.append(mapped_ram.SavedBlock(block=block, header=header, record_offset=0))
        at += count
    end = at + data.draw(st.integers(0, 3))
    covered = {byte for each in blocks for byte in range(each.header.pages_offset, each.pages_end)}
    order = data.draw(st.permutations(blocks))
    found = [byte for first, after in uncovered(order, start, end) for byte in range(first, after)]
    assert found == sorted(set(range(start, end)) - covered)


# --- cut anywhere, flipped anywhere


def test_a_file_of_ours_cut_anywhere_is_refused():
    data = saved_file(M, BIOS, devices=DEVICE_BYTES, alignment=PAGE)
    pages = [each for saved in read(data).blocks for each in range(saved.header.pages_offset, saved.pages_end)]
    sampled = {*pages[::97], *range(0, len(data), PAGE), *range(1, len(data), PAGE), *range(PAGE - 1, len(data), PAGE)}
    for length in some_of(sorted(set(range(len(data))) - set(pages) | sampled), 29):
        with pytest.raises(FormatError):
            read(Stream(data[:length]))


@pytest.mark.parametrize("base", [0, 123])
def test_a_file_of_ours_with_pages_at_mebibytes_is_refused_when_it_is_cut(base):
    data = saved_file(*SMALL, base=base)
    found = read(data, base)
    lengths = set(random.Random(1).sample(range(len(data)), 1000)) | set(
        range(found.blocks[-1].pages_end, len(data), 5)
    )
    for saved in found.blocks:
        lengths |= set(range(saved.record_offset, saved.bitmap_end + 1))
        lengths |= {saved.header.pages_offset + delta for delta in (-1, 0, 1, PAGE)} | {saved.pages_end - 1}
    view = memoryview(data)
    for length in some_of(sorted(lengths), 29):
        with pytest.raises(FormatError):
            parse(lambda offset, count, length=length: bytes(view[offset : min(offset + count, length)]), length, base)


def test_any_flipped_bit_of_heads_and_records_and_trailer_gives_a_value_or_a_format_error():
    data = saved_file(M, BIOS, devices=DEVICE_BYTES, alignment=PAGE)
    found = read(data)
    offsets = [*range(found.blocks[0].bitmap_end), *range(found.blocks[1].record_offset, found.blocks[1].bitmap_end)]
    offsets += [*range(found.blocks[1].pages_end, found.stream_end), *range(len(data) - FOOTER_BYTES, len(data))]
    offsets += range(found.trailer.offset, found.trailer.tables[1] + 8 + 16)
    unnoticed = set()
    flipped = bytearray(data)
    made = Stream(flipped)
    for offset in some_of(offsets, 5):
        for bit in range(8):
            flipped[offset] ^= 1 << bit
            with suppress(FormatError):
                read(made)
                unnoticed.add(offset)
            flipped[offset] ^= 1 << bit
    # What the structure cannot tell, the digests can: names, bitmaps and where they lie, device state, digests.
    footer = range(len(data) - FOOTER_BYTES, len(data) - DIGEST_BYTES)
    sizes_and_places = [
        saved.header_offset + byte for saved in found.blocks for byte in (*range(4, 12), *range(20, 28))
    ]
    assert unnoticed.isdisjoint([*footer, *sizes_and_places])


# --- trailers that contradict themselves or the file


def broken(parts=None, change=lambda parts: parts, *, drawn=(M, BIOS), **how):
    """A file of ours with another trailer."""
    whole = our_file(*drawn, alignment=PAGE)
    at = whole.marks["trailer"]
    data = whole.data[:at]
    marks = [(whole.marks[f"pages:{each.name}"], len(each.picture) * PAGE) for each in drawn]
    starts = [0, *(start + length for start, length in marks)]
    ends = [*(start for start, _ in marks), at]
    good = [stream_digests(data, list(zip(starts, ends, strict=True)))]
    good += [page_digests(number, each.picture) for number, each in enumerate(drawn)]
    return Stream(data + trailer(at, change(good) if parts is None else parts, **how))


def without(index):
    return lambda parts: parts[:index] + parts[index + 1 :]


def with_part(*part):
    return lambda parts: [*parts, part]


def with_payload(index, edit):
    return lambda parts: [*parts[:index], (*parts[index][:2], edit(parts[index][2])), *parts[index + 1 :]]


def first_extent(offset=0, length=0):
    def edit(payload):
        start, count, value = struct.unpack(">QQQ", payload[:24])
        return struct.pack(">QQQ", start + offset, count + length, value) + payload[24:]

    return with_payload(0, edit)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (broken(version=2), "trailer version 2, expected 1"),
        (broken(version=0), "trailer version 0, expected 1"),
        (broken(says_length=PAGE), "the trailer says the file has 0x1000 bytes"),
        (broken(says_length=2**64 - 1), "the trailer says the file has 0xffffffffffffffff bytes"),
        (broken(says_offset=2**64 - 1), "the footer of the trailer contradicts itself"),
        (broken(says_offset=0), "reaches past the trailer"),
        (broken(says_offset=PAGE), "reaches past the trailer"),
        (broken(base=1), "the trailer is for a stream at 0x1, but this one is at 0x0"),
        (broken(base=2**64 - 1), "the footer of the trailer contradicts itself"),
        (broken(count=2**32 - 1), "the footer of the trailer contradicts itself"),
        (broken(count=8193), "the footer of the trailer contradicts itself"),
        (broken(count=3), "trailer parts end at .*, expected"),
        (broken(count=0), "trailer parts end at .*, expected"),
        (broken(count=5), "file ends in head of a trailer part"),
        (broken(pad=False), "the footer of the trailer contradicts itself"),
        (broken(parts=[]), "the trailer's page digests do not match the RAMBlocks"),
        (broken(change=without(0)), "the trailer's stream digests do not cover the stream"),
        (broken(change=without(1)), "the trailer's page digests do not match the RAMBlocks"),
        (broken(change=without(2)), "the trailer's page digests do not match the RAMBlocks"),
        (broken(change=lambda parts: [*parts, parts[0]]), "a second table of stream digests"),
        (broken(change=lambda parts: [*parts, parts[1]]), "table of page digests for block number 0"),
        (broken(change=with_part(2, 0, struct.pack(">II", 2, 0))), "the trailer's page digests do not match"),
        (broken(change=with_part(2, 0, struct.pack(">II", 4096, 0))), "table of page digests for block number 4096"),
        (broken(change=with_part(2, 0, struct.pack(">II", 2**32 - 1, 0))), "for block number 4294967295"),
        (broken(change=with_part(2, 0, b"")), "table of page digests of 0 bytes"),
        (broken(change=with_part(2, 0, bytes(7))), "table of page digests of 7 bytes"),
        (broken(change=with_part(2, 0, bytes(15))), "table of page digests of 15 bytes"),
        (broken(change=with_payload(1, lambda p: p + bytes(8))), "the trailer's page digests do not match"),
        (broken(change=with_payload(1, lambda p: p[:-8])), "the trailer's page digests do not match"),
        (broken(change=with_payload(0, lambda p: p[:-1])), "table of stream digests of 71 bytes"),
        (broken(change=with_payload(0, lambda p: p[:-24])), "do not cover the stream"),
        (broken(change=with_payload(0, lambda p: p + p[:24])), "do not cover the stream"),
        (broken(change=with_payload(0, lambda p: p[24:48] + p[:24] + p[48:])), "do not cover the stream"),
        (broken(change=first_extent(offset=1)), "do not cover the stream"),
        (broken(change=first_extent(length=-1)), "do not cover the stream"),
        (broken(change=first_extent(length=2**63)), "do not cover the stream"),
        (broken(change=lambda parts: [(1, 0, bytes(24 * 4099))]), "table of stream digests of 98376 bytes"),
        (broken(change=with_part(5, 0, struct.pack(">QQQ", 0, 92, 0))), "head digests do not cover what precedes"),
        (broken(change=lambda parts: [*parts, *[(5, 0, bytes(24))] * 2]), "a second table of head digests"),
        (broken(change=with_part(5, 0, bytes(23))), "table of stream digests of 23 bytes"),
        (broken(change=with_part(99, 1, b"x")), "trailer part of unknown type 99 that a reader must know"),
        (broken(change=with_part(99, 0xFFFFFFFF, b"x")), "trailer part of unknown type 99"),
    ],
)  # fmt: skip
def test_a_trailer_that_contradicts_itself_or_the_file_is_refused(made, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        read(made)
    assert caught.value.offset is not None


@pytest.mark.parametrize("ranges", [[(0, 92)], [(92, 200)], [(0, 92), (91, 200)], [(0, 92), (93, 200)],
                                    [(92, 200), (0, 92)], [(0, 201)], [(0, 92), (92, 2**63)]])  # fmt: skip
def test_digests_of_the_bytes_before_the_stream_cover_all_of_them(ranges):
    whole = our_file(M, alignment=PAGE, base=200)
    at, pages = whole.marks["trailer"], whole.marks["pages:m"]
    rest = [stream_digests(whole.data, [(200, pages), (pages + 3 * PAGE, at)]), page_digests(0, M.picture)]

    def made(ranges):
        return whole.data[:at] + trailer(at, [*rest, stream_digests(whole.data, ranges, kind=5)], base=200)

    assert len(read(made([(0, 92), (92, 200)]), 200).trailer.head) == 2
    with pytest.raises(FormatError, match="head digests do not cover what precedes the stream"):
        read(made(ranges), 200)


def test_the_trailer_that_the_other_tests_break_is_good():
    assert read(broken()).trailer.table_pages == {0: 3, 1: 1}


@pytest.mark.parametrize("length", [1, 2**63, 2**64 - 1])
def test_a_part_that_reaches_past_the_trailer_is_refused(length):
    made = broken()
    found = read(made).trailer
    last = found.tables[1] + 8  # the head of the padding
    (payload,) = struct.unpack_from(">Q", made.data, last + 8)
    with pytest.raises(FormatError, match="reaches past the trailer"):
        read(made.patch(last, "Q", min(payload + length, 2**64 - 1), at=8))


@pytest.mark.parametrize("part", [(99, 0, b"x" * 77), (2**32 - 1, 2**32 - 2, b""), (0, 0, bytes(5)), (0, 1, b"")])
def test_a_part_that_may_be_skipped_is_skipped(part):
    made = broken(change=with_part(*part))
    assert read(made).trailer.table_pages == {0: 3, 1: 1}


def test_a_part_may_stand_anywhere():
    made = broken(change=lambda parts: parts[::-1])
    assert read(made).trailer.table_pages == {0: 3, 1: 1}


def test_an_absent_block_has_no_page_digests():
    both = ("x-ignore-shared", "mapped-ram")
    absent, here = Block(name="m", picture="AB", absent=True), Block(name="s", picture="C")
    made = stream(absent, here, capabilities=both, devices=())
    data = made.data + bytes(-len(made.data) % PAGE)
    after = made.marks["pages:s"] + PAGE
    parts = [stream_digests(data, [(0, made.marks["pages:s"]), (after, len(data))]), page_digests(1, "C")]
    assert read(data + trailer(len(data), parts)).trailer.table_pages == {1: 1}
    with pytest.raises(FormatError, match="page digests do not match"):
        read(data + trailer(len(data), [*parts, page_digests(0, "AB")]))


def test_bytes_between_stream_and_trailer_must_be_zero():
    made = our_file(M, alignment=PAGE)
    with pytest.raises(FormatError, match="bytes that are not zero follow the stream"):
        read(made.patch("trailer", "B", 1, at=-1))


def test_a_trailer_too_far_behind_the_stream_is_refused():
    made = our_file(M, alignment=PAGE)
    at = made.marks["trailer"]
    data = made.data[:at] + bytes(PAGE)
    parts = [stream_digests(data, [(0, PAGE), (4 * PAGE, len(data))]), page_digests(0, M.picture)]
    with pytest.raises(FormatError, match="the trailer does not follow the stream"):
        read(data + trailer(len(data), parts))


def test_a_trailer_over_the_stream_is_refused():
    made = our_file(M, alignment=PAGE)
    data = made.data[: made.marks["trailer"]]
    parts = [stream_digests(data, [(0, len(data))]), page_digests(0, M.picture)]
    for says in (0, 8, PAGE, 4 * PAGE, len(data) - 64):
        with pytest.raises(FormatError):
            read(data + trailer(len(data), parts, says_offset=says))


def test_the_stream_of_a_file_with_a_trailer_is_not_read_from_elsewhere():
    data = saved_file(M, base=123)
    for base in (0, 122, 124, len(data) - 8, len(data), len(data) + 1, 1 << 62):
        with pytest.raises(FormatError):
            read(data, base)


def test_whether_there_is_a_trailer_is_told_by_its_magic_alone():
    data = saved_file(M)
    assert has_trailer(Stream(data).read, len(data))
    assert not has_trailer(Stream(data).read, len(data) - 1)
    assert not has_trailer(Stream(data).read, FOOTER_BYTES - 1)
    assert not has_trailer(Stream(b"").read, 0)
    assert not has_trailer(Stream(stream(M).data).read, len(stream(M).data))


@given(st.integers(0, 4), st.data())
def test_any_change_of_a_trailer_gives_a_file_or_a_format_error(changes, data):
    made = broken()
    at = read(made).trailer.offset
    for _ in range(changes):
        place = data.draw(st.integers(0, 150) | st.integers(len(made.data) - at - 48, len(made.data) - at - 8))
        layout, top = data.draw(st.sampled_from([("B", 0xFF), ("I", 2**32 - 1), ("Q", 2**64 - 1)]))
        value = data.draw(st.sampled_from([0, 1, 2, top, top - 1]) | st.integers(0, top))
        made = replace(made.patch(at + place, layout, value), marks={})
    with suppress(FormatError):
        found = read(made).trailer
        assert found is None or found.file_length == len(made.data)


@given(st.binary(max_size=300))
def test_any_bytes_before_a_footer_are_a_trailer_or_a_format_error(data):
    footer = struct.pack(">8sIIQQQQ", b"FIXEDRAM", 1, 2, 0, 0, len(data) + 48, 0)
    with suppress(FormatError):
        read_trailer(Stream(data + footer).read, len(data) + 48)


def test_a_trailer_of_as_many_parts_as_are_allowed_costs_little_memory():
    drawn = [Block(name=f"b{i}", picture="0") for i in range(300)]
    made = our_file(*drawn, alignment=PAGE)
    tracemalloc.start()
    try:
        assert len(read(made).trailer.tables) == 300
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    parts = [(1, 0, bytes(24 * 4097))] + [(2, 0, struct.pack(">II", i, 0)) for i in range(4096)] + [(99, 0, b"")] * 4094
    made = Stream(trailer(0, parts))
    tracemalloc.start()
    try:
        assert len(read_trailer(made.read, len(made.data)).tables) == 4096
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
