"""Where a stub can go: into the zeros between the end of a mapped file's code and the end of the page.

The linker pads the last page of code with zeros, which belong to no section and which nothing refers to. They are
mapped executable because pages are mapped as a whole. Bytes that are not zero are left alone: they may belong to the
file, or be a stub that a thread has yet to run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEAD_LENGTH = 4096
"""Bytes of a file that we read: the ELF header, and the program headers, which linkers put right after it."""

_ELF64_LSB = b"\x7fELF\x02\x01"
_EM_X86_64 = 62
_PT_LOAD = 1
_PF_X = 1
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
"""Elf64_Ehdr of elf.h."""
_PHDR = struct.Struct("<IIQQQQQQ")
"""Elf64_Phdr: type, flags, offset, vaddr, paddr, filesz, memsz, align."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A mapping from which a process runs a file's code, private and not writable."""

    start: int
    """First address."""
    end: int
    """Address after the last one."""
    offset: int
    """Where it starts in the file, bytes."""


def is_64_bit_x86(head: bytes) -> bool:
    """Whether a file with these first bytes is an ELF file for 64-bit x86."""
    return len(head) >= _EHDR.size and head.startswith(_ELF64_LSB) and _EHDR.unpack_from(head)[2] == _EM_X86_64


def code_ends(head: bytes) -> list[int]:
    """Offsets of the end of each piece of code in a file; none if it is not for 64-bit x86.

    Args:
        head: its first bytes, ``HEAD_LENGTH`` or fewer.
    """
    if not is_64_bit_x86(head):
        return []
    table, size, count = (_EHDR.unpack_from(head)[field] for field in (5, 9, 10))
    if size != _PHDR.size or table + size * count > len(head):
        return []
    ends = []
    for kind, flags, offset, _, _, in_file, in_memory, _ in _PHDR.iter_unpack(head[table : table + size * count]):
        if kind == _PT_LOAD and flags & _PF_X and in_file == in_memory:
            ends.append(offset + in_file)
    return ends


def places(code: Code, ends: list[int], length: int) -> Iterator[int]:
    """Addresses of pieces of this length that are free if they are zeros, which the caller checks; disjoint, ascending.

    Args:
        code: a mapping.
        ends: from ``code_ends``, for the file that it maps.
        length: bytes, a multiple of 16.
    """
    for end in ends:
        address = code.start + end - code.offset
        if code.start < address < code.end:
            yield from range(-(-address // 16) * 16, code.end - length + 1, length)
