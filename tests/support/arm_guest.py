"""Guests for the machine ``virt`` of aarch64 and arm: some twenty instructions, loaded into RAM and started there.

They go round and round. One *round* touches every page of ``[FIRST, END)`` once and prints the next letter of A..Z on
the serial line, so that a reader sees where a guest went on. A page then holds nothing but

* word 0: how often it was touched;
* word 2: its own address, so that a page in the wrong place is found.

Any interrupt stays off, and so does the MMU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

RAM = 0x4000_0000
"""Where RAM begins."""
START = RAM + (2 << 20)
"""Where the code goes: behind the device tree that QEMU puts first."""
FIRST = RAM + (4 << 20)
END = RAM + (20 << 20)
PAGE = 4096
UART = 0x0900_0000
"""Data register of the PL011."""
DELAY = 32 << 16
"""Times that an empty loop is gone through between two rounds."""

CPUS = {"aarch64": "cortex-a57", "arm": "cortex-a15"}

Part = int | str | tuple[int, str]
"""An instruction, ``label:``, or a jump: its instruction, and where to."""


def arguments(target: str, folder: Path) -> list[str]:
    """What starts the guest in a QEMU of that target, machine type ``virt``; its image goes into ``folder``."""
    image = folder / f"{target}.img"
    image.write_bytes(_assemble(_a64(), 19, 5, 0) if target == "aarch64" else _assemble(_a32(), 24, 0, 2))
    load = f"loader,file={image},addr={START:#x},cpu-num=0,force-raw=on"
    return ["-cpu", CPUS[target], "-device", load]


def check_pages(ram: bytes) -> None:
    """Hold main memory of a guest that stands still against what it does: it is in one round, somewhere."""
    words = np.frombuffer(ram, np.uint32).reshape(-1, PAGE // 4)[(FIRST - RAM) // PAGE : (END - RAM) // PAGE]
    touched = words[:, 0].astype(int)
    assert touched[0] > 0
    assert set(np.diff(touched)) <= {0, -1}
    assert touched[0] - touched[-1] <= 1
    assert (words[touched > 0, 2] == np.arange(FIRST, END, PAGE)[touched > 0]).all()
    assert not words[:, 3:].any()


def _a64() -> Iterable[Part]:
    return [
        0xD2A00000 | UART >> 16 << 5,  # movz x0, #UART >> 16, lsl #16
        0x52800003 | ord("A") << 5,  # movz w3, #'A'
        "round:",
        0xD2A00001 | FIRST >> 16 << 5,  # movz x1, #FIRST >> 16, lsl #16
        0xD2A00002 | END >> 16 << 5,  # movz x2, #END >> 16, lsl #16
        "page:",
        0xB9400024,  # ldr w4, [x1]
        0x11000484,  # add w4, w4, #1
        0xB9000024,  # str w4, [x1]
        0xB9000821,  # str w1, [x1, #8]
        0x91400421,  # add x1, x1, #1, lsl #12
        0xEB02003F,  # cmp x1, x2
        (0x54000003, "page"),  # b.lo page
        0xB9000003,  # str w3, [x0]
        0x11000463,  # add w3, w3, #1
        0x7100001F | (ord("Z") + 1) << 10 | 3 << 5,  # cmp w3, #'Z' + 1
        (0x54000001, "rest"),  # b.ne rest
        0x52800003 | ord("A") << 5,  # movz w3, #'A'
        "rest:",
        0xD2A00005 | DELAY >> 16 << 5,  # movz x5, #DELAY >> 16, lsl #16
        "spin:",
        0xF10004A5,  # subs x5, x5, #1
        (0x54000001, "spin"),  # b.ne spin
        (0x5400000E, "round"),  # b.al round
    ]


def _a32() -> Iterable[Part]:
    return [
        0xE3A00409,  # mov r0, #0x09000000
        0xE3A03000 | ord("A"),  # mov r3, #'A'
        "round:",
        *_load(1, FIRST),
        *_load(2, END),
        "page:",
        0xE5914000,  # ldr r4, [r1]
        0xE2844001,  # add r4, r4, #1
        0xE5814000,  # str r4, [r1]
        0xE5811008,  # str r1, [r1, #8]
        0xE2811A01,  # add r1, r1, #0x1000
        0xE1510002,  # cmp r1, r2
        (0x3A000000, "page"),  # blo page
        0xE5803000,  # str r3, [r0]
        0xE2833001,  # add r3, r3, #1
        0xE3530000 | (ord("Z") + 1),  # cmp r3, #'Z' + 1
        0x03A03000 | ord("A"),  # moveq r3, #'A'
        *_load(5, DELAY),
        "spin:",
        0xE2555001,  # subs r5, r5, #1
        (0x1A000000, "spin"),  # bne spin
        (0xEA000000, "round"),  # b round
    ]


def _load(register: int, value: int) -> list[int]:
    """A number whose low half is zero: movw, movt."""
    high = value >> 16
    return [0xE3000000 | register << 12, 0xE3400000 | high >> 12 << 16 | register << 12 | high & 0xFFF]


def _assemble(parts: Iterable[Part], width: int, shift: int, ahead: int) -> bytes:
    """Two passes: where the labels are, then the instructions.

    Args:
        parts: the program.
        width: bits that a jump has for its distance, counted in instructions.
        shift: where they are.
        ahead: how many instructions before it reads its own address, so to say.
    """
    labels: dict[str, int] = {}
    code: list[int | tuple[int, str]] = []
    for part in parts:
        if isinstance(part, str):
            labels[part.rstrip(":")] = len(code)
        else:
            code.append(part)
    for position, part in enumerate(code):
        if isinstance(part, tuple):
            distance = labels[part[1]] - position - ahead
            code[position] = part[0] | (distance & (1 << width) - 1) << shift
    return struct.pack(f"<{len(code)}I", *code)
