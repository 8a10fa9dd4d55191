import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.ramblock import PageRange, RAMBlock, check_idstr, check_unique

MIB = 1 << 20


def test_a_block_counts_its_target_pages():
    assert RAMBlock(idstr="m", used_length=65 * 4096).pages == 65


def test_a_block_of_one_page_is_a_block():
    assert RAMBlock(idstr="/rom@etc/acpi/rsdp", used_length=4096).pages == 1


def test_max_length_is_used_length_unless_given():
    assert RAMBlock(idstr="m", used_length=4096).max_length == 4096
    assert RAMBlock(idstr="m", used_length=0x20000, max_length=0x200000).max_length == 0x200000


def test_a_block_cannot_be_changed():
    block = RAMBlock(idstr="m", used_length=4096)
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.used_length = 8192


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"used_length": 0}, "must be positive"),
        ({"used_length": -4096}, "must be positive"),
        ({"used_length": 1}, "not a multiple of its page size"),
        ({"used_length": 4097}, "not a multiple of its page size"),
        ({"used_length": MIB, "host_page_size": 2 * MIB}, "not a multiple of its host page size"),
        ({"used_length": 8192, "max_length": 4096}, "max_length 4096 is below"),
    ],
)
def test_lengths_that_cannot_be_are_refused(fields, reason):
    with pytest.raises(RequestError, match=reason):
        RAMBlock(idstr="m", **fields)


@pytest.mark.parametrize("idstr", ["m", "pc.ram", "/rom@etc/acpi/tables", "0000:00:02.0/vga.vram", "a b", "x" * 255])
def test_names_as_qemu_has_them_are_taken(idstr):
    check_idstr(idstr)


@pytest.mark.parametrize("idstr", ["", "x" * 256, "a\nb", "\0", "\x7f", "é", "\ud800", "\u200b"])
def test_names_a_stream_cannot_carry_are_refused(idstr):
    with pytest.raises(RequestError):
        check_idstr(idstr)


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=300))
def test_any_name_is_taken_or_refused(idstr):
    try:
        check_idstr(idstr)
    except RequestError:
        return
    assert 1 <= len(idstr.encode("ascii")) <= 255


def test_a_machine_has_blocks_of_different_names():
    one, two = RAMBlock(idstr="a", used_length=4096), RAMBlock(idstr="b", used_length=4096)
    check_unique([one, two])
    with pytest.raises(RequestError, match="two blocks are named 'a'"):
        check_unique([one, two, RAMBlock(idstr="a", used_length=8192)])
    with pytest.raises(RequestError, match="no RAMBlock"):
        check_unique([])


def test_a_range_of_pages_is_half_open():
    assert PageRange(3, 2).end == 5
    assert PageRange(3, 0).end == 3
