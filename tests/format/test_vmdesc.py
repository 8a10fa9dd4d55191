import json
from collections import deque

import pytest
from support.streamwriter import Block, Section, stream

from parallel_fixedram.format.migration_file import parse
from parallel_fixedram.format.vmdesc import section_lengths

FOOTER_OF_7 = b"\x7e\0\0\0\x07"
PLANTED = b"before " + FOOTER_OF_7 + b"\0\0 after"
"""A body in which a guest has put what looks like the section's footer and the end mark."""


def description(*devices):
    return json.dumps({"page_size": 4096, "devices": list(devices)}).encode()


def field(size, **more):
    return {"name": "f", "type": "uint8", "size": size, **more}


def lengths_of(text):
    data = b"whatever stands before\x06\0\0" + b"\x06" + len(text).to_bytes(4, "big") + text + bytes(100)
    return section_lengths(lambda offset, length: data[offset : offset + length], 5, len(data))


def test_a_body_is_as_long_as_its_fields_and_subsections_with_their_heads():
    sub = {"vmsd_name": "cpu/fpu", "version": 1, "fields": [field(10)]}
    device = {"name": "cpu", "instance_id": 3, "fields": [field(4), field(2, array_len=8)], "subsections": [sub]}
    assert lengths_of(description(device)) == {("cpu", 3): deque([4 + 16 + (1 + 1 + len("cpu/fpu") + 4 + 10)])}


@pytest.mark.parametrize(
    "text",
    [
        *(b"{}", b"[]", b'{"devices": 1}', b'{"devices": [{"name": "a"}]}', b'{"devices": [{]}', b"\xff"),
        b'{"devices": [{"name": "a", "instance_id": 1e999}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": [{"size": Infinity}]}]}',
    ],
)
def test_a_description_that_does_not_help_gives_no_lengths(text):
    assert lengths_of(text) == {}


def test_where_there_is_no_description_there_are_no_lengths():
    assert section_lengths(lambda _offset, length: bytes(length), 0, 5000) == {}


def test_bytes_that_look_like_the_end_of_a_section_do_not_end_it_where_its_length_is_known():
    device = {"name": "planted", "instance_id": 0, "fields": [field(len(PLANTED))]}
    devices = (Section(name="planted", body=PLANTED, id=7), Section(name="next"))
    made = stream(Block(), devices=devices, vmdesc=description(device))
    found = parse(made.read, len(made.data)).devices
    assert [each.name for each in found] == ["planted", "next"]
    assert found[0].length == 1 + 4 + 1 + len("planted") + 8 + len(PLANTED) + 5


def test_a_description_with_a_wrong_length_is_not_believed():
    device = {"name": "timer", "instance_id": 0, "fields": [field(3)]}
    made = stream(Block(), devices=(Section(name="timer", body=bytes(24)),), vmdesc=description(device))
    (found,) = parse(made.read, len(made.data)).devices
    assert found.length == 1 + 4 + 1 + len("timer") + 8 + 24 + 5
