"""Whether a seccomp filter allows a system call: the filter, a classic BPF program, is interpreted here.

If the answer is not certain, the call counts as not allowed. Facts: Linux, include/uapi/linux/bpf_common.h, filter.h
and seccomp.h; kernel/seccomp.c, seccomp_check_filter, for what such a program may consist of.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

ALLOW = 0x7FFF0000
"""SECCOMP_RET_ALLOW; any other action interferes with the caller."""

_ACTION = 0xFFFF0000

AUDIT_ARCH_X86_64 = 0xC000003E

_INSTRUCTION = struct.Struct("<HBBI")
"""struct sock_filter: code, jt, jf, k."""
_MEMORY_WORDS = 16
_ALL = 0xFFFFFFFF
_DATA_LENGTH = 64
"""sizeof(struct seccomp_data)."""

_ALU: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 31),
    0x70: lambda a, b: a >> (b & 31),
    0x80: lambda a, _: -a,
    0xA0: lambda a, b: a ^ b,
}
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: bool(a & b),
}


class Unclear(Exception):
    """A filter uses a value that is not known, or is not one that the kernel would accept."""


def allows(program: bytes, number: int, arguments: Sequence[int] | None) -> bool:
    """Whether a filter allows a system call by a 64-bit x86 thread, from any address.

    Args:
        program: an array of struct sock_filter.
        number: of the system call.
        arguments: the first few, up to six; the others may be anything. None if none is known.
    """
    try:
        return answer(program, _words(number, arguments or ())) & _ACTION == ALLOW
    except Unclear:
        return False


def _words(number: int, arguments: Sequence[int]) -> list[int | None]:
    """struct seccomp_data (nr, arch, instruction_pointer, args) as 32-bit words, None for those not known."""
    words: list[int | None] = [number, AUDIT_ARCH_X86_64, None, None]
    for each in arguments:
        words += [each & _ALL, each >> 32]
    return words + [None] * (_DATA_LENGTH // 4 - len(words))


def answer(program: bytes, words: Sequence[int | None]) -> int:
    """Run a filter.

    Args:
        program: an array of struct sock_filter.
        words: struct seccomp_data in words of 32 bits; None for what is not known.

    Returns:
        Its 32-bit return value: action and data.

    Raises:
        Unclear: the answer depends on something that is not known.
    """
    instructions = list(_INSTRUCTION.iter_unpack(program))
    a, x, memory, at = 0, 0, [0] * _MEMORY_WORDS, 0
    while at < len(instructions):  # jumps go forward only
        code, jump_true, jump_false, k = instructions[at]
        at += 1
        match code & 7:
            case 0:
                a = _load(code, k, words, memory)
            case 1:
                x = _load(code, k, words, memory)
            case 2 | 3 as store if k < _MEMORY_WORDS:
                memory[k] = a if store == 2 else x
            case 4:
                a = _computed(code, a, x if code & 8 else k)
            case 5 if code == 0x05:
                at += k
            case 5 if compare := _COMPARE.get(code & 0xF0):
                at += jump_true if compare(a, x if code & 8 else k) else jump_false
            case 6:
                return a if code & 0x18 == 0x10 else k
            case 7:
                a, x = (x, x) if code & 0x80 else (a, a)
            case _:
                raise Unclear(f"instruction {code:#x}")
    raise Unclear("it has no end")


def _load(code: int, k: int, words: Sequence[int | None], memory: Sequence[int]) -> int:
    found: int | None = None
    match code & 0xE0:
        case 0x00:
            found = k
        case 0x20 if k % 4 == 0 and k // 4 < len(words):
            found = words[k // 4]
        case 0x60 if k < _MEMORY_WORDS:
            found = memory[k]
        case 0x80:
            found = _DATA_LENGTH
    if found is None:
        raise Unclear(f"load {code:#x} of {k:#x}")
    return found


def _computed(code: int, a: int, operand: int) -> int:
    operation = code & 0xF0
    if operation == 0x30:
        if operand == 0:
            raise Unclear("a division by zero")
        return a // operand
    if compute := _ALU.get(operation):
        return compute(a, operand) & _ALL
    raise Unclear(f"operation {code:#x}")
