"""The clone stream as a part of the trailer: its layout, how it is found, and what damage of it looks like."""

import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import some_of
from support.streamwriter import (
    DEVICES,
    MIB,
    PAGE,
    Block,
    Stream,
    clone_stream,
    device_bytes,
    our_file,
    our_vmdesc,
    page_digests,
    stream,
    stream_digests,
    trailer,
)

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.migration_file import parse, read_clone_blocks
from parallel_fixedram.format.trailer import TrailerLayout
from parallel_fixedram.format.trailer_reader import read_trailer

M = Block(name="m", picture="A0C")
SMALL = (Block(name="pc.bios", picture="B."), Block(name="vram", picture="0" * 65 + "V"))


def made_by_us(**how):
    """A small file with a clone stream."""
    return our_file(M, *SMALL, alignment=PAGE, devices=DEVICES, clone=SMALL, machine="pc-q35-10.0", **how)


def with_parts(*parts, **how):
    """A file whose trailer has these parts too; a callable is given its place in the file."""
    made = our_file(M, alignment=PAGE)
    at = made.marks["trailer"]
    found = [stream_digests(made.data[:at], [(0, made.marks["pages:m"]), (made.marks["pages:m"] + 3 * PAGE, at)])]
    found.append(page_digests(0, "A0C"))
    for part in parts:
        place = at + sum(16 + len(payload) for _, _, payload in found) + 16
        found.append(part(place) if callable(part) else part)
    data = made.data[:at] + trailer(at, found, **how)
    return Stream(data), read_trailer(Stream(data).read, len(data))


def of(*blocks, **how):
    """A clone stream, as a part."""
    return lambda at: clone_stream(at, blocks, **{"vmdesc": our_vmdesc(DEVICES), **how})


def names(made, found):
    return [each.block.idstr for each in read_clone_blocks(made.read, found)]


def blocks_of(drawn):
    return [RAMBlock(idstr=each.name, used_length=len(each.picture) * PAGE) for each in drawn]


@pytest.mark.parametrize("base", [0, 1, 123, 4096, MIB])
@pytest.mark.parametrize("alignment", [PAGE, MIB])
def test_page_arrays_start_at_multiples_of_what_was_asked_for(base, alignment):
    layout = FileLayout.plan("pc-q35-10.0", blocks_of(SMALL), base, alignment=alignment)
    made = stream(*SMALL, base=base, alignment=alignment, ram_id=0x52414D00, parts=0, command=False)
    assert [(each.record_offset, each.header.bitmap_offset, each.header.pages_offset) for each in layout.blocks] == [
        tuple(made.marks[f"{what}:{each.name}"] for what in ("record", "bitmap", "pages")) for each in SMALL
    ]
    assert all(made.data[offset : offset + len(data)] == data for offset, data in layout.head_pieces())
    assert layout.ram_end == made.marks["eos"]


def test_the_part_lies_between_the_digests_and_the_padding():
    made = made_by_us()
    devices = device_bytes(DEVICES)

    def end(base):
        layout = FileLayout.plan("pc-q35-10.0", blocks_of(SMALL), base, alignment=PAGE)
        return layout.ram_end + len(layout.tail(devices))

    plan = TrailerLayout.plan(base=0, stream_end=made.marks["stream_end"], blocks=blocks_of((M, *SMALL)), clone_end=end)
    assert (plan.clone_offset, end(plan.clone_offset)) == (made.marks["clone"], made.marks["clone_end"])
    assert (plan.file_length, plan.offset) == (len(made.data), made.marks["trailer"])
    assert [made.data[at : at + len(head)] for at, head in plan.parts] == [head for _, head in plan.parts]
    assert plan.parts[-2] == (
        plan.clone_offset - 16,
        struct.pack(">IIQ", 3, 0, end(plan.clone_offset) - plan.clone_offset),
    )
    assert made.data[plan.footer_offset : -8] == plan.pack_footer()


def test_without_a_clone_stream_there_is_no_such_part():
    plan = TrailerLayout.plan(base=0, stream_end=99, blocks=blocks_of((M,)))
    assert plan.clone_offset == 0
    assert [struct.unpack_from(">I", head)[0] for _, head in plan.parts] == [1, 2, 0]
    made = our_file(M, alignment=PAGE)
    found = parse(made.read, len(made.data)).trailer
    assert (found.clone_offset, found.clone_end, read_clone_blocks(made.read, found)) == (0, 0, ())


def test_the_clone_stream_is_found_and_is_a_whole_stream_without_main_memory():
    made = made_by_us()
    found = parse(made.read, len(made.data)).trailer
    assert (found.clone_offset, found.clone_end) == (made.marks["clone"], made.marks["clone_end"])
    assert names(made, found) == ["pc.bios", "vram"]
    alone = Stream(made.data[: found.clone_end].replace(b"parallel-fixedram", b"somebody-else-did"))
    alone = Stream(alone.data.replace(b"RAM\0", b"\0\0\1\1"))
    assert [each.name for each in parse(alone.read, found.clone_end, found.clone_offset).devices] == ["timer", "cpu"]


@pytest.mark.parametrize("flags", [0, 1, 2, 2**32 - 1])
def test_a_reader_that_knows_the_part_takes_it_whatever_its_flags(flags):
    made, found = with_parts(lambda at: (3, flags, of(*SMALL)(at)[2]))
    assert names(made, found) == ["pc.bios", "vram"]


def test_a_reader_that_does_not_know_the_part_skips_it():
    """As it was before there were clone streams: the flag REQUIRED is not set."""
    (kind, flags), *_ = (struct.unpack_from(">II", head) for _, head in TrailerLayout.plan(
        base=0, stream_end=99, blocks=blocks_of((M,)), clone_end=lambda at: at + 5
    ).parts[-2:])  # fmt: skip
    assert (kind, flags) == (3, 0)
    made, found = with_parts(lambda at: (33, flags, of(*SMALL)(at)[2]))
    assert names(made, found) == []


@pytest.mark.parametrize("second", [of(*SMALL), (3, 0, b""), (3, 0, b"x")])
def test_a_second_clone_stream_is_refused(second):
    with pytest.raises(FormatError, match="a second clone stream") as caught:
        with_parts(of(*SMALL), second)
    assert caught.value.offset is not None


@pytest.mark.parametrize("length", [1, 2**32, 2**63, 2**64 - 1])
def test_a_part_that_reaches_past_the_end_is_refused(length):
    made = made_by_us()
    (payload,) = struct.unpack_from(">Q", made.data, made.marks["clone"] - 8)
    left = len(made.data) - 48 - made.marks["clone_end"]
    longer = min(payload + left + length, 2**64 - 1)
    with pytest.raises(FormatError, match="reaches past the trailer"):
        read_trailer(made.patch("clone", "Q", longer, at=-8).read, len(made.data))


def far_away(at):
    """A clone stream whose page array would lie a terabyte further on."""
    kind, flags, payload = of(*SMALL)(at)
    place = payload.index(b"pc.bios") + 7 + 8 + 4 + 8 + 8
    return kind, flags, payload[:place] + struct.pack(">Q", 1 << 40) + payload[place + 8 :]


def two_in_one_place(at):
    """A clone stream whose block has its bitmap where its page array is."""
    return of(replace(SMALL[0], bitmap_at=-(-(at + 200) // PAGE) * PAGE))(at)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ((3, 0, b""), "not a migration stream"),
        ((3, 0, bytes(9999)), "not a migration stream"),
        (lambda at: (3, 0, of(*SMALL)(at)[2][:-1]), "file ends in VM description"),
        (lambda at: (3, 0, of(*SMALL)(at)[2] + b"\0"), "the clone stream ends early"),
        (lambda at: (3, 0, of(*SMALL)(at + 1)[2]), "block name is not printable"),
        (of(*SMALL, eof=False), "footer is missing"),
        (of(SMALL[0], SMALL[0]), "two blocks are named 'pc.bios'"),
        (lambda at: (3, 0, stream().data[: stream().marks["ram"]] + b"\0"), "no ram section in the clone stream"),
        (two_in_one_place, "block 'pc.bios' begins inside the"),
        (far_away, "block 'pc.bios': its page array ends at"),
    ],
    ids=["empty", "zeros", "cut", "longer", "moved", "no end", "twice", "no ram", "overlap", "far away"],
)
def test_a_clone_stream_that_is_none_is_refused(part, reason):
    made, found = with_parts(part)
    with pytest.raises(FormatError, match=reason) as caught:
        read_clone_blocks(made.read, found)
    assert caught.value.offset is not None


def test_a_clone_stream_cut_anywhere_is_refused():
    whole, found = with_parts(of(*SMALL, devices=DEVICES))
    length = found.clone_end - found.clone_offset
    after_eof = length - 5 - len(our_vmdesc(DEVICES))  # legal: a description need not follow
    for shorter in some_of(sorted({*range(0, length, 7), *range(length - 300, length)} - {after_eof}), 29):
        with pytest.raises(FormatError):
            read_clone_blocks(whole.read, replace(found, clone_end=found.clone_offset + shorter))


@given(st.integers(0, 4), st.data())
def test_any_change_of_a_clone_stream_gives_its_blocks_or_a_format_error(changes, data):
    made = made_by_us()
    found = read_trailer(made.read, len(made.data))
    for _ in range(changes):
        place = data.draw(st.integers(0, 200) | st.integers(0, found.clone_end - found.clone_offset - 8))
        layout, top = data.draw(st.sampled_from([("B", 0xFF), ("I", 2**32 - 1), ("Q", 2**64 - 1)]))
        value = data.draw(st.sampled_from([0, 1, 2, top, top - 1]) | st.integers(0, top))
        made = replace(made.patch(found.clone_offset + place, layout, value), marks={})
    with suppress(FormatError):
        for each in read_clone_blocks(made.read, found):
            assert found.clone_offset < each.record_offset
            assert each.absent or max(each.bitmap_end, each.pages_end) <= found.clone_end


@given(st.binary(max_size=300))
def test_any_bytes_in_the_part_are_a_stream_or_a_format_error(data):
    for start in (b"", b"QEVM\0\0\0\3\7"):
        made, found = with_parts((3, 0, start + data))
        with suppress(FormatError):
            read_clone_blocks(made.read, found)


@pytest.mark.parametrize("length", [1, 4096, 5000, MIB])
def test_what_is_left_of_an_interrupted_addition_is_refused_with_the_way_back(length):
    made = stream(M, devices=DEVICES)
    end = made.marks["stream_end"]
    left = bytes(length - 1) + b"\1" + bytes(77)
    with pytest.raises(FormatError, match=f"{length} bytes follow the stream and are not a trailer") as caught:
        parse(Stream(made.data + left).read, end + len(left))
    assert caught.value.offset == end
    assert caught.value.hint == f"if adding a clone stream was interrupted: truncate --size={end} gives the file back"
    assert parse(made.read, end).devices
