"""Where a stub can be: zeros after the code of a file that a process has mapped, up to the end of the page.

The linker fills the last page of code with them, no header of the file names them, and nothing refers to them. They
are mapped executable because a page cannot be so in part. Bytes that are not zero are left alone: they may be a part of
the file, or a stub that a thread is still to run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEAD_LENGTH = 4096
"""How much of a file is looked at: its ELF header and the program headers, which linkers put right after it."""

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
    """Whether a file that begins so has code for 64-bit x86, and no other."""
    return len(head) >= _EHDR.size and head.startswith(_ELF64_LSB) and _EHDR.unpack_from(head)[2] == _EM_X86_64


def code_ends(head: bytes) -> list[int]:
    """Offsets in a file right after each piece of code that it has; nothing if it is no file of 64-bit x86.

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
    """Addresses where so many bytes are free if they are zeros, which is not known here; disjoint, ascending.

    Args:
        code: a mapping.
        ends: of the file that it maps, see ``code_ends``.
        length: bytes, a multiple of 16.
    """
    for end in ends:
        address = code.start + end - code.offset
        if code.start < address < code.end:
            yield from range(-(-address // 16) * 16, code.end - length + 1, length)
