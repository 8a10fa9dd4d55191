from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.libvirt_images import XML
from support.libvirt_images import libvirt_head as image

from parallel_fixedram.core.errors import FormatError, RequestError
from parallel_fixedram.format.libvirt_image import (
    MAX_ROOM,
    SIZE,
    LibvirtHeader,
    SaveFormat,
    compose_libvirt_header,
    head_ranges,
    is_libvirt_image,
    read_libvirt_header,
)


def read(data):
    return read_libvirt_header(lambda offset, length: data[offset : offset + length], len(data))


# --- what is written


@given(xml=st.binary(min_size=1, max_size=9000).map(lambda data: data.replace(b"\0", b" ")), running=st.booleans())
def test_what_is_composed_is_read_back_and_leaves_room_for_a_longer_xml(xml, running):
    data = compose_libvirt_header(xml, running)
    header = read(data)
    assert header == LibvirtHeader(version=2, running=running, format=SaveFormat.SPARSE, cookie_offset=0, xml=xml,
                                   complete=True, room=len(data) - 92)  # fmt: skip
    assert header.end == len(data)
    assert header.end % 4096 == 0
    assert header.room - len(xml) - 1 >= 64 << 10


def test_what_is_composed_is_what_libvirt_writes():
    data = compose_libvirt_header(XML, True)
    assert data == image(padding=len(data) - SIZE - len(XML) - 1)


@pytest.mark.parametrize("xml", [b"", b"<a>\0</a>", bytes(MAX_ROOM)], ids=["empty", "with a NUL", "too long"])
def test_an_xml_that_could_not_be_read_back_is_not_written(xml):
    with pytest.raises(RequestError, match=f"domain XML of {len(xml)} bytes cannot be stored"):
        compose_libvirt_header(xml, True)


# --- what is read


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", list(SaveFormat))
def test_images_of_libvirt_are_read_in_both_byte_orders_and_all_formats(order, kind):
    header = read(image(order=order, format=kind, was_running=0, cookie=b"<cookie/>\0", cookie_offset=len(XML) + 1))
    assert (header.version, header.format, header.running) == (2, kind, False)
    assert (header.xml, header.cookie_offset, header.complete) == (XML, len(XML) + 1, True)


def test_an_image_that_libvirt_did_not_complete_is_read_and_known_as_such():
    header = read(image(magic=b"LibvirtQemudPart"))
    assert (header.complete, header.xml) == (False, XML)
    assert "not complete" in header.without_pages


def test_only_sparse_images_have_pages_at_fixed_offsets():
    for kind in SaveFormat:
        why = read(image(format=kind)).without_pages
        assert why == "" if kind is SaveFormat.SPARSE else f"in format {kind.name.lower()}, " in why


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0}, "version 0, expected 1 or 2"),
        ({"version": 3}, "version 3, expected 1 or 2"),
        ({"data_len": 0}, "takes 0 bytes"),
        ({"data_len": MAX_ROOM + 1}, f"takes {MAX_ROOM + 1} bytes"),
        ({"data_len": 0xFFFFFFFF}, "takes 4294967295 bytes"),
        ({"data_len": len(XML)}, "empty or not terminated"),
        ({"format": 7}, "unknown format 7"),
        ({"format": 0xFFFFFFFF}, "unknown format 4294967295"),
        ({"cookie_offset": 1 << 31}, "cookie at 0x80000000"),
        ({"cookie_offset": len(XML)}, "empty or not terminated"),
        ({"xml": b""}, "empty or not terminated"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused_in_one_line(order, fields, message):
    with pytest.raises(FormatError, match=message) as caught:
        read(image(order=order, **fields))
    assert "\n" not in caught.value.message


def test_a_header_is_refused_wherever_it_is_cut_off():
    whole = image(padding=0)
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            read(whole[:length])


@given(data=st.data())
def test_whatever_is_flipped_a_header_is_refused_or_stays_in_its_bounds(data):
    made = bytearray(image(padding=64, cookie=b"<cookie/>\0", cookie_offset=len(XML) + 1))
    for _ in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(0, len(made) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(FormatError):
        header = read(bytes(made))
        assert SIZE < header.end <= len(made)
        assert b"\0" not in header.xml


def test_other_files_are_no_libvirt_images():
    for data in (b"", b"QEVM", b"LibvirtQemudSav", b"LibvirtQemudPar\0" + bytes(100)):
        assert not is_libvirt_image(lambda offset, length, data=data: data[offset : offset + length])
        with pytest.raises(FormatError, match="not a libvirt save image"):
            read(data)


def test_header_and_xml_are_named_apart_and_leave_no_byte_out():
    assert head_ranges(8192) == [(0, 92), (92, 8192)]
