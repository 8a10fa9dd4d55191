"""Filters are run as the kernel runs them, which is asked; what it cannot be asked about is refused."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import at_most
from support.seccomp import ALLOW, ERRNO, JEQ, KILL, LD_ABS, LOG, NR, RET_K, install, only, program

from parallel_fixedram.host.injection.seccomp_filters import AUDIT_ARCH_X86_64, Unclear, allows, answer

NOBODYS = 1000
"""A system call that there is not."""
LD_IMM, LDX_IMM, LD_MEM, LDX_MEM, ST, STX, LD_LEN = 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x80
JA, JGT, JGE, JSET = 0x05, 0x25, 0x35, 0x45
ADD_K, OR_K, AND_K, RSH_K, XOR_X, RET_A, TAX, TXA = 0x04, 0x44, 0x54, 0x74, 0xAC, 0x16, 0x07, 0x87
ARCH, IP, ARGUMENT = 4, 8, 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def kernels_answer(instructions: bytes, arguments: Sequence[int]) -> int:
    """The errno that a system call ends with under a filter."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            install(instructions)
            result = _libc.syscall(NOBODYS, *(ctypes.c_uint64(each) for each in arguments))
            os.write(writer, struct.pack("<i", ctypes.get_errno() if result == -1 else 0))
        except OSError as error:
            os.write(writer, struct.pack("<i", -(error.errno or 0)))
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    found = os.read(reader, 4)
    os.close(reader)
    return struct.unpack("<i", found)[0]


K = st.integers(0, (1 << 32) - 1) | st.integers(0, 40)
CELLS = st.integers(0, 15)
ALU = st.sampled_from([0x04, 0x14, 0x24, 0x44, 0x54, 0xA4])
STEPS = st.one_of(
    st.tuples(st.just(LD_ABS), st.just(0), st.just(0), st.sampled_from([NR, ARCH, *range(ARGUMENT, 64, 4)])),
    st.tuples(st.sampled_from([LD_IMM, LDX_IMM]), st.just(0), st.just(0), K),
    st.tuples(st.sampled_from([ST, STX, LD_MEM, LDX_MEM]), st.just(0), st.just(0), CELLS),
    st.tuples(ALU, st.just(0), st.just(0), K),
    st.tuples(ALU.map(lambda code: code | 8), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.sampled_from([0x64, 0x74]), st.just(0), st.just(0), st.integers(0, 31)),
    st.tuples(st.sampled_from([0x6C, 0x7C, 0x84, TAX, TXA, LD_LEN, 0x81]), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just(0x34), st.just(0), st.just(0), st.integers(1, 1 << 31)),
    st.tuples(st.sampled_from([JEQ, JGT, JGE, JSET, 0x1D, 0x2D, 0x3D, 0x4D]), st.integers(0, 2), st.integers(0, 2), K),
)


@at_most(40)
@given(
    steps=st.lists(STEPS, max_size=12),
    arguments=st.lists(st.integers(0, (1 << 64) - 1), min_size=6, max_size=6),
)
def test_a_filter_is_answered_as_the_kernel_answers_it(
    steps: list[tuple[int, int, int, int]], arguments: list[int]
) -> None:
    written = [(ST, 0, 0, cell) for cell in range(16)]
    nothing = [(ADD_K, 0, 0, 0)] * 2  # where the farthest jumps end
    folded = [
        (TAX, 0, 0, 0),
        (RSH_K, 0, 0, 16),
        (XOR_X, 0, 0, 0),
        (AND_K, 0, 0, 0x7FF),
        (OR_K, 0, 0, ERRNO),
        (RET_A, 0, 0, 0),
    ]
    ours = program(*written, *steps, *nothing, *folded)
    others = (LD_ABS, 0, 0, NR), (JEQ, 1, 0, NOBODYS), (RET_K, 0, 0, ALLOW)
    whole = program(*others) + ours
    words: list[int | None] = [NOBODYS, AUDIT_ARCH_X86_64, None, None]
    for each in arguments:
        words += [each & 0xFFFFFFFF, each >> 32]
    assert answer(whole, words) == ERRNO | kernels_answer(whole, arguments)


@pytest.mark.parametrize("action", [KILL, 0x00000000, 0x00030000, ERRNO | errno.EPERM, 0x7FC00000, 0x7FF00000, LOG])
def test_nothing_but_to_allow_is_taken_for_that(action: int) -> None:
    assert not allows(only(323, action), 323, (0, 0, 0))
    assert allows(only(323, action), 3, None)


def test_what_the_answer_allows_by_argument_is_known_where_the_argument_is() -> None:
    of_first = program(
        (LD_ABS, 0, 0, ARGUMENT), (JEQ, 0, 1, 5), (RET_K, 0, 0, ALLOW), (RET_K, 0, 0, ERRNO | errno.EPERM)
    )
    assert allows(of_first, 16, (5, 0, 0))
    assert not allows(of_first, 16, (6, 0, 0))
    assert not allows(of_first, 16, None)
    upper = program((LD_ABS, 0, 0, ARGUMENT + 4), (RET_A, 0, 0, 0))
    assert allows(upper, 16, (ALLOW << 32, 0, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ((JA, 0, 0, 5),),
        ((LD_ABS, 0, 0, IP), (RET_K, 0, 0, ALLOW)),
        ((LD_ABS, 0, 0, 2), (RET_K, 0, 0, ALLOW)),
        ((LD_ABS, 0, 0, 64), (RET_K, 0, 0, ALLOW)),
        ((0x40, 0, 0, 0), (RET_K, 0, 0, ALLOW)),
        ((ST, 0, 0, 16), (RET_K, 0, 0, ALLOW)),
        ((LD_MEM, 0, 0, 16), (RET_K, 0, 0, ALLOW)),
        ((0x94, 0, 0, 1), (RET_K, 0, 0, ALLOW)),
        ((0x3C, 0, 0, 0), (RET_K, 0, 0, ALLOW)),
        ((0xF5, 0, 0, 0), (RET_K, 0, 0, ALLOW)),
    ],
    ids=["empty", "jump", "address", "odd", "behind", "indirect", "store", "cell", "modulo", "by zero", "compare"],
)
def test_what_cannot_be_told_is_not_allowed(wrong: tuple[tuple[int, int, int, int], ...]) -> None:
    with pytest.raises(Unclear):
        answer(program(*wrong), [323, AUDIT_ARCH_X86_64, None, None, *[0] * 12])
    assert not allows(program(*wrong), 323, (0, 0, 0))
