"""Code that notices everything: it runs with given registers, flags, red zone and SSE registers, and tells them after.

::

    push what the ABI wants kept; flags, SSE registers, red zone, registers <- given
    arrived <- 1
    the body: a loop, a system call, a jump to somewhere else
    registers, red zone, SSE registers, flags -> found; pop; ret

Memory is shared with whoever forks, so that another process may look, and say when the loop ends. x86-64 alone.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
FREE = tuple(name for name in NAMES if name != "rsp")
FLAGS = 0xCD5
"""Those that a program may set as it likes and no test of ours depends on: CF, PF, AF, ZF, SF, DF, OF."""
RED_ZONE_WORDS = 16

_DATA = mmap.PAGESIZE
_GIVEN, _FOUND = _DATA, _DATA + 1024
_WORDS, _FLAGS_AT, _RED, _XMM = 0, 128, 136, 264
_SAVED_RSP, ARRIVED, GO = _DATA + 2048, _DATA + 2056, _DATA + 2064
SCRATCH = _DATA + 3072
"""Behind it there are 1000 bytes for arguments of system calls."""


@dataclass(frozen=True)
class State:
    """What code sees."""

    registers: tuple[int, ...]
    """In the order of ``FREE``."""
    flags: int
    red_zone: tuple[int, ...]
    sse: bytes
    """16 registers of 16 bytes."""


class MachineCode:
    """One such function.

    Args:
        body: its pieces: bytes, or the beginning of an instruction, in hex, and what it is to reach in the memory; a
            dot stands where the distance to that goes if it is not the end.
    """

    def __init__(self, *body: bytes | tuple[str, int]) -> None:
        self.memory = mmap.mmap(-1, 2 * mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.address = int(np.frombuffer(self.memory, np.uint8).ctypes.data)
        self._code = bytearray()
        self._write(_prologue())
        self.body = self.address + len(self._code)
        """Where the body begins."""
        self._write(body)
        self.after = self.address + len(self._code)
        """Where it ends."""
        self._write(_epilogue())
        self.memory[: len(self._code)] = bytes(self._code)

    def give(self, state: State) -> None:
        """What the next run begins with."""
        registers = dict(zip(FREE, state.registers, strict=True))
        words = [registers.get(name, 0) for name in NAMES]
        data = struct.pack("<16QQ16Q", *words, state.flags, *state.red_zone) + state.sse
        self.memory[_GIVEN : _GIVEN + len(data)] = data
        self.memory[ARRIVED : GO + 8] = bytes(16)

    def run(self) -> State:
        """In whatever process this is called."""
        ctypes.CFUNCTYPE(None)(self.address)()
        return self.found()

    def found(self) -> State:
        """What the last run ended with."""
        words = struct.unpack_from("<16QQ16Q", self.memory, _FOUND)
        registers = dict(zip(NAMES, words[:16], strict=True))
        return State(
            registers=tuple(registers[name] for name in FREE),
            flags=words[16] & FLAGS,
            red_zone=words[17:],
            sse=self.memory[_FOUND + _XMM : _FOUND + _XMM + 256],
        )

    def has_arrived(self) -> bool:
        return self.memory[ARRIVED] != 0

    def go(self) -> None:
        """End the loop."""
        self.memory[GO] = 1

    def _write(self, pieces: Iterable[bytes | tuple[str, int]]) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                self._code += piece
                continue
            instruction, target = piece
            opcode, _, behind = instruction.partition(".")
            code, rest = bytes.fromhex(opcode), bytes.fromhex(behind)
            self._code += code + struct.pack("<i", target - len(self._code) - len(code) - 4 - len(rest)) + rest


def _load_or_store(opcode: int, number: int, target: int) -> tuple[str, int]:
    """mov between a register and memory: 0x8b loads, 0x89 stores."""
    return f"{0x48 | (number >> 3) << 2:02x}{opcode:02x}{(number & 7) << 3 | 5:02x}", target


def _sse(opcode: int, number: int, target: int) -> tuple[str, int]:
    """movups between an SSE register and memory: 0x10 loads, 0x11 stores."""
    return f"{'44' if number > 7 else ''}0f{opcode:02x}{(number & 7) << 3 | 5:02x}", target


def _rax_to_red_zone(word: int) -> bytes:
    return bytes.fromhex("48894424") + struct.pack("<b", -8 * (word + 1))


def _red_zone_to_rax(word: int) -> bytes:
    return bytes.fromhex("488b4424") + struct.pack("<b", -8 * (word + 1))


def _prologue() -> Iterable[bytes | tuple[str, int]]:
    yield bytes.fromhex("53 55 4154 4155 4156 4157")  # push rbx, rbp, r12, r13, r14, r15
    yield "488925", _SAVED_RSP
    yield bytes.fromhex("488da42400fcffff")  # lea rsp, [rsp-1024]
    yield "ff35", _GIVEN + _FLAGS_AT  # push
    yield bytes.fromhex("9d")  # popfq; what follows changes no flags
    for number in range(16):
        yield _sse(0x10, number, _GIVEN + _XMM + 16 * number)
    for word in range(RED_ZONE_WORDS):
        yield _load_or_store(0x8B, 0, _GIVEN + _RED + 8 * word)
        yield _rax_to_red_zone(word)
    for number, name in enumerate(NAMES):
        if name != "rsp":
            yield _load_or_store(0x8B, number, _GIVEN + 8 * number)
    yield "c705.01000000", ARRIVED  # mov dword, 1


def _epilogue() -> Iterable[bytes | tuple[str, int]]:
    for number in range(16):
        yield _load_or_store(0x89, number, _FOUND + 8 * number)
    for word in range(RED_ZONE_WORDS):
        yield _red_zone_to_rax(word)
        yield _load_or_store(0x89, 0, _FOUND + _RED + 8 * word)
    for number in range(16):
        yield _sse(0x11, number, _FOUND + _XMM + 16 * number)
    yield bytes.fromhex("488da42400ffffff")  # lea rsp, [rsp-256]
    yield bytes.fromhex("9c")  # pushfq
    yield "8f05", _FOUND + _FLAGS_AT  # pop
    yield bytes.fromhex("fc")  # cld
    yield "488b25", _SAVED_RSP
    yield bytes.fromhex("415f 415e 415d 415c 5d 5b c3")  # pop r15, r14, r13, r12, rbp, rbx; ret


SPIN = (("488b0d", GO), bytes.fromhex("e3f7"))
"""mov rcx, go; jrcxz back: rcx is 0 until it ends, then 1."""

_DESCRIPTOR = SCRATCH + 32

SYSCALL = (bytes.fromhex("0f05"),)


def jump(target: int) -> bytes:
    return bytes.fromhex("ff2500000000") + struct.pack("<Q", target)


def restartable_loop() -> MachineCode:
    """The loop as a critical section (rseq(2)): interrupted in it, the thread is sent to its beginning.

    ``rbx`` has to be the address of the thread's struct rseq, ``rax`` that of the section's description.
    """
    begin = bytes.fromhex("48894308")  # mov [rbx+8], rax
    loop = len(begin)
    end = bytes.fromhex("eb06 53300553 ebeb")  # jmp over the rest; the signature that glibc has agreed on; jmp to begin
    code = MachineCode(begin, *SPIN, end, bytes.fromhex("48c7430800000000"))  # mov qword [rbx+8], 0
    start = code.body + loop
    description = struct.pack("<QQQQ", 0, start, 9, code.body + len(begin) + 9 + 6)
    code.memory[_DESCRIPTOR : _DESCRIPTOR + 32] = description
    return code


def critical_registers(code: MachineCode) -> dict[str, int]:
    """What ``restartable_loop`` needs, in this process and those that it forks from this thread."""
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_uint64
    offset = ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value
    return {"rbx": libc.pthread_self() + offset, "rax": code.address + _DESCRIPTOR, "rcx": 0}
