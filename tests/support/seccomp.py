"""Seccomp filters, made and installed by nothing of the product's."""

from __future__ import annotations

import ctypes
import platform
import struct

import pytest

ALLOW, ERRNO, KILL, LOG = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FFC0000
LD_ABS, JEQ, RET_K = 0x20, 0x15, 0x06
NR = 0
_NUMBERS = {"open": 2, "fstat": 5, "clone": 56, "fork": 57, "vfork": 58, "fsync": 74, "ftruncate": 77, "statfs": 137}
_NUMBERS |= {
    "io_setup": 206,
    "io_submit": 209,
    "fstatfs": 138,
    "fadvise64": 221,
    "openat": 257,
    "fallocate": 285,
    "userfaultfd": 323,
    "clone3": 435,
}

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


def refusing(error: int, *names: str) -> bytes:
    """A filter by which the kernel refuses some system calls with that errno."""
    if platform.machine() != "x86_64":
        pytest.skip("here the numbers of system calls are known for x86-64 alone")
    checks = [(JEQ, len(names) - number, 0, _NUMBERS[name]) for number, name in enumerate(names)]
    return program((LD_ABS, 0, 0, NR), *checks, (RET_K, 0, 0, ALLOW), (RET_K, 0, 0, ERRNO | error))
