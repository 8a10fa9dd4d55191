"""Seccomp filters, made and installed by nothing of the product's."""

from __future__ import annotations

import ctypes
import struct

ALLOW, ERRNO, KILL, LOG = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FFC0000
LD_ABS, JEQ, RET_K = 0x20, 0x15, 0x06
NR = 0

_libc = ctypes.CDLL(None, use_errno=True)


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    """Each: code, jt, jf, k."""
    return b"".join(struct.pack("<HBBI", *each) for each in instructions)


def install(instructions: bytes) -> None:
    """In this process, for good."""
    buffer = ctypes.create_string_buffer(instructions)
    header = struct.pack("<HxxxxxxQ", len(instructions) // 8, ctypes.addressof(buffer))
    argument = ctypes.create_string_buffer(header)
    for option, value, more in ((38, 1, None), (22, 2, argument)):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        if _libc.prctl(option, value, more, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def only(number: int, action: int) -> bytes:
    """A filter that does something to one system call."""
    return program((LD_ABS, 0, 0, NR), (JEQ, 0, 1, number), (RET_K, 0, 0, action), (RET_K, 0, 0, ALLOW))
