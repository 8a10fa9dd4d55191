"""A file with zeros behind its end, as tapes and volumes give it back, says the same."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laid_out_file import saved_file
from support.streamwriter import (
    DEVICES,
    MIB,
    PAGE,
    Block,
    Sparse,
    Stream,
    our_file,
    stream,
)

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format.migration_file import parse
from parallel_fixedram.format.trailer import (
    FOOTER_BYTES,
)
from parallel_fixedram.format.trailer_reader import content_end

M = Block(name="m", picture="A0C")
BIOS = Block(name="pc.bios", picture="B")


def read(made, base=0):
    made = made if isinstance(made, Stream) else Stream(made)
    return parse(made.read, len(made.data), base)


PADDING = [1, 100, 4095, 4096, 5000, MIB + 3]
PADDED = {
    "ours": our_file(M, BIOS, alignment=PAGE),
    "ours, behind a prefix": Stream(saved_file(M, BIOS, base=123, alignment=PAGE)),
    "QEMU's": stream(M, BIOS, devices=DEVICES),
    "QEMU's without a description": stream(M, BIOS, devices=DEVICES, vmdesc=None),
    "QEMU's, the last pages zero": stream(Block(name="m", picture="A" + "0" * 70), devices=(), vmdesc=None),
}


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", PADDED)
def test_a_file_says_the_same_with_zeros_behind_it(name, padding):
    data = PADDED[name].data
    base = 123 if "prefix" in name else 0
    found = read(data, base)
    assert replace(read(data + bytes(padding), base), size=found.size) == found
    assert (found.trailer is not None) == ("ours" in name)


@pytest.mark.parametrize("name", PADDED)
def test_what_stands_behind_the_zeros_is_refused(name):
    data = PADDED[name].data
    base = 123 if "prefix" in name else 0
    for more in (b"\1", data[-FOOTER_BYTES:], bytes(PAGE - FOOTER_BYTES) + data[-FOOTER_BYTES:]):
        for padding in (PAGE - len(data) % PAGE, 2 * PAGE - len(data) % PAGE):
            with pytest.raises(FormatError):
                read(data + bytes(padding) + more, base)


@given(st.binary(max_size=9), st.sampled_from([0, 1, 4095, 4096, 4097, 12288, MIB]))
def test_the_content_ends_behind_the_last_byte_that_is_not_zero(data, zeros):
    whole = Stream(data + bytes(zeros))
    assert content_end(whole.read, len(whole.data)) == len(data.rstrip(b"\0"))


def test_the_end_is_looked_for_once_and_not_where_a_hole_is_known():
    data, size = saved_file(M), 64 * MIB
    padded = Sparse(size, {0: data})
    parse(padded.read, size)
    assert size - len(data) <= padded.bytes_read <= size
    padded = Sparse(size, {0: data})
    parse(padded.read, size, data_end=len(data) + 5000)
    assert padded.bytes_read < len(data)
