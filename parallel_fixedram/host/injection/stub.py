"""The machine code that a process runs for us: make a descriptor by a system call, close it, and go back.

::

    place + 0    jmp again                      the kernel goes back two bytes to restart a system call
    place + 2    saves; call; close; restores; jmp to where the thread was
    again        saves; call; close; restores; jmp to two bytes before that

The injector changes one register: ``rip`` becomes ``place + 2``. If the thread was in a system call, the kernel does
what it does after any interruption: either it ends the call and goes on at ``rip``, or it restarts the call at ``rip -
2``, with ``rax`` set accordingly. So the kernel chooses which of the two copies runs, and a system call ends, restarts,
keeps its time-out, and gives way to signals as if nobody had been there. The stub does all the rest itself: it restores
all registers, the flags and the ABI's red zone, even if the injector is dead by then. It has no trap, no signal mask
and no data, and no call or ret, which a shadow stack would object to.

Facts: Linux, arch/x86/kernel/signal.c (arch_do_signal_or_restart, handle_signal); System V ABI for x86-64, 3.2.2 and
A.2.1 (the red zone; a system call keeps all registers but rax, rcx, r11).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LENGTH = 160
"""Bytes of a stub, zeros at its end included."""

ENTRY = 2
"""Where a thread begins, counted from the place."""

_SYSCALL = bytes.fromhex("0f05")
_SAVE = bytes.fromhex(
    "488d642480"  # lea rsp, [rsp-128]: what is below rsp belongs to whoever was interrupted
    "9c"  # pushfq
    "50 51 52 56 57 41 53"  # push rax, rcx, rdx, rsi, rdi, r11
)
_CLOSE = bytes.fromhex(
    "85c0 7809"  # test eax, eax; js over the rest: there is no descriptor
    "89c7 b803000000 0f05"  # mov edi, eax; mov eax, 3 (close); syscall
)
_RESTORE = bytes.fromhex(
    "41 5b 5f 5e 5a 59 58"  # pop r11, rdi, rsi, rdx, rcx, rax
    "9d"  # popfq
    "488da42480000000"  # lea rsp, [rsp+128]
    "ff2500000000"  # jmp [rip+0]: the address after it
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A system call that returns a descriptor."""

    number: int
    arguments: tuple[int, int, int]
    """Each 0 to 2**31-1."""


def _arguments(call: Call) -> bytes:
    fields = (call.number, *call.arguments)
    if not all(0 <= each < 1 << 31 for each in fields):
        raise ValueError(f"{call} does not fit")
    registers = b"\xb8\xbf\xbe\xba"  # mov eax, edi, esi, edx
    return b"".join(struct.pack("<BI", register, field) for register, field in zip(registers, fields, strict=True))


_CALL = len(_SAVE) + 4 * 5 + len(_SYSCALL)
_COPY = _CALL + len(_CLOSE) + len(_RESTORE) + 8
_COPIES = (ENTRY, ENTRY + _COPY)

AFTER_CALL = tuple(copy + _CALL for copy in _COPIES)
"""Where ``rip`` is after the call, in either copy, counted from the place."""

AFTER_CLOSE = tuple(copy + _CALL + len(_CLOSE) for copy in _COPIES)
"""Where ``rip`` is after the close, in either copy."""


def encode(call: Call, rip: int) -> bytes:
    """The stub: ``LENGTH`` bytes, which work at any place.

    Args:
        call: the system call to make.
        rip: where the thread was stopped.
    """
    jump = bytes((0xEB, _COPY))
    one, other = (
        _SAVE + _arguments(call) + _SYSCALL + _CLOSE + _RESTORE + struct.pack("<Q", back) for back in (rip, rip - 2)
    )
    return (jump + one + other).ljust(LENGTH, b"\0")
