"""Where a stub may be: behind code, in what the linker filled up."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.host.injection.code_places import Code, code_ends, is_64_bit_x86, places

LOAD, NOTE = 1, 4
READ, RUN = 4, 5


def elf(*segments: tuple[int, int, int, int, int], machine: int = 62, ident: bytes = b"\x7fELF\x02\x01\x01") -> bytes:
    """The head of a file with such segments: type, flags, offset, bytes in the file, bytes in memory."""
    head = ident.ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    for kind, flags, offset, in_file, in_memory in segments:
        head += struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, in_file, in_memory, 4096)
    return head


CODE = (LOAD, RUN, 0x1000, 0x2345, 0x2345)


class TestCodeEnds:
    def test_only_what_is_loaded_and_run_counts(self) -> None:
        assert code_ends(elf((LOAD, READ, 0, 0x800, 0x800), CODE, (NOTE, RUN, 0x200, 0x20, 0x20))) == [0x3345]

    def test_behind_code_that_is_longer_in_memory_nothing_is_free(self) -> None:
        assert code_ends(elf((LOAD, RUN, 0x1000, 0x2345, 0x2346))) == []

    @pytest.mark.parametrize(
        "head",
        [
            elf(CODE, machine=183),
            elf(CODE, machine=3),
            elf(CODE, ident=b"\x7fELF\x01\x01\x01"),
            elf(CODE, ident=b"\x7fELF\x02\x02\x01"),
            elf(CODE, ident=b"#!/bin/sh\n"),
            elf(CODE)[:-1],
            elf(CODE)[:63],
            b"",
        ],
        ids=["aarch64", "i386", "32 bits", "big-endian", "script", "cut table", "cut header", "nothing"],
    )
    def test_of_no_file_for_64_bit_x86_or_only_a_part_of_it_nothing_is_known(self, head: bytes) -> None:
        assert code_ends(head) == []

    @given(st.binary(max_size=200))
    def test_whatever_it_is_it_is_read_to_its_end_at_most(self, rest: bytes) -> None:
        for start in (rest, elf()[:64] + rest, elf()[:52] + rest):
            code_ends(start)
            is_64_bit_x86(start)


class TestPlaces:
    @given(
        offset=st.integers(0, 8).map(lambda pages: pages * 4096),
        pages=st.integers(1, 4),
        end=st.integers(0, 12 * 4096),
        length=st.sampled_from([16, 160, 4096]),
    )
    def test_they_are_disjoint_aligned_behind_the_end_and_in_the_mapping(
        self, offset: int, pages: int, end: int, length: int
    ) -> None:
        code = Code(start=1 << 40, end=(1 << 40) + pages * 4096, offset=offset)
        found = list(places(code, [end], length))
        free = code.start + end - offset
        for place in found:
            assert place % 16 == 0
            assert free <= place <= code.end - length
        assert all(after - before >= length for before, after in pairwise(found))
        room = code.end - (free + 15) // 16 * 16 if code.start < free < code.end else 0
        assert len(found) == max(0, room // length)

    def test_code_that_fills_its_last_page_leaves_no_room(self) -> None:
        assert list(places(Code(start=0x10000, end=0x12000, offset=0), [0x2000], 160)) == []
