"""Guests in 512 bytes: boot sectors that fill or dirty a range of RAM and say so on the serial port.

All but ``disk_image`` enter 32-bit protected mode, so they reach any address below 4 GiB and can no longer use the
BIOS. ``fill_image`` fills a share of RAM, prints FILLED, and then sleeps or goes on rewriting pages.

``boot_image`` goes round and round. One *round* touches every page of ``[first, end)`` once and prints the next letter
of A..Z, so that a reader of the serial line sees where a guest went on. Page ``p`` (an absolute guest page number) then
holds nothing but

* byte 0: a counter modulo 8, which starts at ``p // 2 % 8``: at any moment an eighth of the even pages is zero, and
  each of them is zero now and then, which is how stale pages come to lie behind cleared bits in a live save;
* bytes 4..7, odd pages only: the page's own address, so that a page in the wrong place is found.
"""

from __future__ import annotations

import struct

from parallel_fixedram.experiments.machine_code import Part, assemble, u32

ORIGIN = 0x7C00
SECTOR = 512
IMAGE_SIZE = 1 << 20
"""Bytes; SeaBIOS does not boot from an AHCI disk without a whole cylinder (16 heads of 63 sectors)."""
PAGE = 4096
PIT_HZ = 1_193_182
TIMER_VECTOR = 8
"""Where the BIOS left it."""

FILLED = "F"
"""What a guest of ``fill_image`` prints once its RAM is full."""
FIRST = 1 << 20
"""First byte that it fills."""
LOW_RAM = 3 << 30
"""Where RAM below 4 GiB ends on a ``pc`` machine that has more (QEMU hw/i386/pc_piix.c)."""
_RESERVED_AT_END = 16 << 20
"""SeaBIOS leaves remains of itself, and its tables, in the end of RAM below 4 GiB."""
TICKS = 100
"""Times a second that it wakes to rewrite pages."""

WORK_AT = 0x7000
"""Where it counts the pages that it has rewritten: 4 bytes, little-endian, which wrap around."""

_MULTIPLIER, _INCREMENT = 1_664_525, 1_013_904_223  # of a linear congruential generator with the period 2**32


def filled_bytes(size: int, share: float) -> int:
    """How many bytes of RAM a guest of ``size`` bytes fills: whole pages."""
    return int(size * share) // PAGE * PAGE


def most_filled_bytes(size: int) -> int:
    """How many it can fill at most."""
    return min(size, LOW_RAM) - _RESERVED_AT_END - FIRST


def fill_image(
    *, size: int, share: float, dirty_rate: int = 0, hot: int | None = None, at_random: bool = False, seed: int = 1
) -> bytes:
    """A disk image that fills RAM with numbers that look random: no two pages are alike, and none is zero.

    Args:
        size: bytes of RAM.
        share: of RAM, how much it fills, from FIRST on.
        dirty_rate: bytes of pages rewritten a second afterwards; 0 to sleep for good. It never sleeps if it cannot keep
            up with that.
        hot: bytes of the filled range that it rewrites, from FIRST on; all of it if not given.
        at_random: rewrite a page anywhere in that range each time, instead of going round.
        seed: where the numbers start.

    Raises:
        ValueError: there is not so much room, or ``hot`` is more than that.
    """
    filled = filled_bytes(size, share)
    if not 0 < filled <= most_filled_bytes(size):
        raise ValueError(f"{share:g} of {size} bytes is not between 1 page and {most_filled_bytes(size)} bytes")
    hot = filled if hot is None else hot // PAGE * PAGE
    if not 0 < hot <= filled:
        raise ValueError(f"{hot} bytes are not between 1 page and the {filled} bytes that are filled")
    afterwards = _afterwards(dirty_rate, _next_at_random(hot) if at_random else _next_in_order(hot))
    return _image(*_enter_protected_mode(), *_fill(FIRST + filled, seed & 0xFFFFFFFF), *afterwards, *_tables())


def boot_image(*, first: int = 1 << 20, end: int = 40 << 20, hz: int = 100) -> bytes:
    """A bootable floppy or disk image, empty after its first sector.

    Args:
        first: first byte of the range to dirty, a multiple of 8 KiB, 1 MiB at least.
        end: first byte after it, a multiple of 8 KiB. SeaBIOS has its tables at the end of RAM and leaves remains of
            itself before RAM's last 16 MiB, where pages therefore do not hold only what is said above.
        hz: rounds a second, 19 at least, the processor sleeping in between; 0 to go round as fast as possible.
    """
    if first % 8192 or end % 8192 or not 1 << 20 <= first < end:
        raise ValueError(f"not a range of whole pairs of pages above 1 MiB: {first:#x}..{end:#x}")
    divisor = PIT_HZ // hz if hz else 0
    return _image(
        *_enter_protected_mode(),
        *_start_timer(divisor),
        *_set_up(first, end),
        *_go_round(first, end, sleep=hz > 0),
        *_tables(),
    )


DISK_SECTORS = 64


def disk_image() -> bytes:
    """A disk whose boot sector goes on writing to the disk it came from, by way of the BIOS and its driver.

    One *round* counts in memory, writes a sector that starts with that number (4 bytes, little-endian) at sector
    ``1 + number % DISK_SECTORS`` and prints the next letter of A..Z; a disk that fails prints ``!``. Numbers begin with
    1, rounds come with the BIOS's timer, 18 a second.
    """
    return _image(
        b"\xfa",  # cli
        b"\x31\xc0",  # xor ax, ax
        b"\x8e\xd8",  # mov ds, ax
        b"\x8e\xc0",  # mov es, ax
        b"\x8e\xd0",  # mov ss, ax
        b"\xbc\x00\x7c",  # mov sp, ORIGIN
        b"\xfb",  # sti
        b"\x66\xc7\x06\x00\x80" + u32(0),  # mov dword [0x8000], 0
        b"\xb3A",  # mov bl, 'A'
        "round:",
        b"\x66\xff\x06\x00\x80",  # inc dword [0x8000]
        b"\x66\xa1\x00\x80",  # mov eax, [0x8000]
        b"\x66\x83\xe0" + bytes([DISK_SECTORS - 1]),  # and eax, DISK_SECTORS - 1
        b"\x66\x40",  # inc eax
        (b"\x66\xa3", "packet", 2, 8),  # mov [packet + 8], eax
        b"\xb8\x00\x43",  # mov ax, 0x4300: extended write
        (b"\xbe", "packet", 2, 0),  # mov si, packet
        b"\xcd\x13",  # int 0x13, the drive is still in dl
        (b"\x72", "failed", 1, 0),  # jc failed
        b"\x52",  # push dx
        b"\xba\xf8\x03",  # mov dx, 0x3f8
        b"\x88\xd8",  # mov al, bl
        b"\xee",  # out dx, al
        b"\x5a",  # pop dx
        b"\xfe\xc3",  # inc bl
        b"\x80\xfb\x5b",  # cmp bl, 'Z' + 1
        b"\x75\x02",  # jne over the next
        b"\xb3A",  # mov bl, 'A'
        b"\xf4",  # hlt
        (b"\xeb", "round", 1, 0),  # jmp round
        "failed:",
        b"\xba\xf8\x03",  # mov dx, 0x3f8
        b"\xb0!",  # mov al, '!'
        b"\xee",  # out dx, al
        b"\xf4",  # hlt
        (b"\xeb", "failed", 1, 0),  # jmp failed
        "packet:",
        struct.pack("<BBHHHQ", 16, 0, 1, 0x8000, 0, 0),  # one sector, from 0x8000
    )


def _image(*parts: Part) -> bytes:
    """A disk that starts with this code."""
    code = assemble(*parts, origin=ORIGIN)
    if len(code) > SECTOR - 2:
        raise ValueError(f"the code has {len(code)} bytes, a boot sector has room for {SECTOR - 2}")
    return (code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa").ljust(IMAGE_SIZE, b"\0")


def _enter_protected_mode() -> list[Part]:
    return [
        b"\xfa",  # cli
        b"\x31\xc0",  # xor ax, ax
        b"\x8e\xd8",  # mov ds, ax
        b"\xe4\x92",  # in al, 0x92
        b"\x0c\x02",  # or al, 2: the A20 line
        b"\xe6\x92",  # out 0x92, al
        (b"\x0f\x01\x16", "gdtr", 2, 0),  # lgdt [gdtr]
        (b"\x0f\x01\x1e", "idtr", 2, 0),  # lidt [idtr]
        b"\x0f\x20\xc0",  # mov eax, cr0
        b"\x0c\x01",  # or al, 1
        b"\x0f\x22\xc0",  # mov cr0, eax
        (b"\xea", "flat", 2, 0),  # jmp 0x08:flat
        b"\x08\x00",
        "flat:",  # 32 bit from here on
        b"\x66\xb8\x10\x00",  # mov ax, 0x10
        b"\x8e\xd8",  # mov ds, ax
        b"\x8e\xd0",  # mov ss, ax
        b"\xbc" + u32(ORIGIN),  # mov esp, ORIGIN
    ]


def _fill(end: int, seed: int) -> list[Part]:
    return [
        b"\xbf" + u32(FIRST),  # mov edi, FIRST
        b"\xb8" + u32(seed),  # mov eax, seed
        "fill:",
        b"\x69\xc0" + u32(_MULTIPLIER),  # imul eax, eax, _MULTIPLIER
        b"\x05" + u32(_INCREMENT),  # add eax, _INCREMENT
        b"\x89\xc2",  # mov edx, eax
        b"\xc1\xea\x0d",  # shr edx, 13
        b"\x31\xc2",  # xor edx, eax: the low bits of such a generator go round too soon
        b"\x89\x17",  # mov [edi], edx
        b"\x83\xc7\x04",  # add edi, 4
        b"\x81\xff" + u32(end),  # cmp edi, end
        (b"\x72", "fill", 1, 0),  # jb fill
        b"\x66\xba\xfd\x03",  # mov dx, 0x3fd
        "busy:",
        b"\xec",  # in al, dx
        b"\xa8\x20",  # test al, 0x20: is the line free?
        (b"\x74", "busy", 1, 0),  # jz busy
        b"\xb0" + FILLED.encode(),  # mov al, FILLED
        b"\xb2\xf8",  # mov dl, 0xf8
        b"\xee",  # out dx, al
    ]


def _afterwards(dirty_rate: int, next_page: list[Part]) -> list[Part]:
    """Sleep for good, or rewrite some pages with every tick: those that ``next_page`` puts into edi."""
    if not dirty_rate:
        return ["sleep:", b"\xfa\xf4", (b"\xeb", "sleep", 1, 0)]  # cli, hlt
    return [
        *_start_timer(PIT_HZ // TICKS),
        b"\xbf" + u32(FIRST),  # mov edi, FIRST
        "tick:",
        b"\xb9" + u32(max(dirty_rate // (PAGE * TICKS), 1)),  # mov ecx, pages
        "page:",
        b"\xff\x47\x08",  # inc dword [edi + 8]
        b"\xff\x05" + u32(WORK_AT),  # inc dword [WORK_AT]
        *next_page,
        b"\x49",  # dec ecx
        (b"\x75", "page", 1, 0),  # jnz page
        b"\xfb\xf4",  # sti, hlt
        b"\xfa",  # cli
        (b"\xeb", "tick", 1, 0),  # jmp tick
    ]


def _next_in_order(hot: int) -> list[Part]:
    return [
        b"\x81\xc7" + u32(PAGE),  # add edi, PAGE
        b"\x81\xff" + u32(FIRST + hot),  # cmp edi, FIRST + hot
        (b"\x72", "on", 1, 0),  # jb on
        b"\xbf" + u32(FIRST),  # mov edi, FIRST
        "on:",
    ]


def _next_at_random(hot: int) -> list[Part]:
    return [
        b"\x69\xf6" + u32(_MULTIPLIER),  # imul esi, esi, _MULTIPLIER
        b"\x81\xc6" + u32(_INCREMENT),  # add esi, _INCREMENT
        b"\xb8" + u32(hot // PAGE),  # mov eax, pages
        b"\xf7\xe6",  # mul esi: the upper half of the product, edx, is below eax
        b"\xc1\xe2\x0c",  # shl edx, 12
        b"\x8d\xba" + u32(FIRST),  # lea edi, [edx + FIRST]
    ]


def _start_timer(divisor: int) -> list[Part]:
    low, high = divisor.to_bytes(2, "little")
    return [
        b"\xb0\xfe",  # mov al, 0xfe
        b"\xe6\x21",  # out 0x21, al: no interrupt but the timer's
        b"\xb0\xff",  # mov al, 0xff
        b"\xe6\xa1",  # out 0xa1, al
        b"\xb0\x34",  # mov al, 0x34
        b"\xe6\x43",  # out 0x43, al: timer channel 0, periodic
        bytes([0xB0, low]),  # mov al, low
        b"\xe6\x40",  # out 0x40, al
        bytes([0xB0, high]),  # mov al, high
        b"\xe6\x40",  # out 0x40, al
    ]


def _set_up(first: int, end: int) -> list[Part]:
    return [
        b"\xbf" + u32(first),  # mov edi, first
        "init:",
        b"\x89\xf8",  # mov eax, edi
        b"\xc1\xe8\x0d",  # shr eax, 13
        b"\x24\x07",  # and al, 7
        b"\x88\x07",  # mov [edi], al: the even page's counter
        b"\x81\xc7" + u32(PAGE),  # add edi, PAGE
        b"\x88\x07",  # mov [edi], al: the odd page's counter
        b"\x89\x7f\x04",  # mov [edi + 4], edi: and its address
        b"\x81\xc7" + u32(PAGE),  # add edi, PAGE
        b"\x81\xff" + u32(end),  # cmp edi, end
        (b"\x72", "init", 1, 0),  # jb init
    ]


def _go_round(first: int, end: int, *, sleep: bool) -> list[Part]:
    return [
        b"\xb3A",  # mov bl, 'A'
        "round:",
        b"\xbf" + u32(first),  # mov edi, first
        "page:",
        b"\xfe\x07",  # inc byte [edi]
        b"\x80\x27\x07",  # and byte [edi], 7
        b"\x81\xc7" + u32(PAGE),  # add edi, PAGE
        b"\x81\xff" + u32(end),  # cmp edi, end
        (b"\x72", "page", 1, 0),  # jb page
        b"\x66\xba\xfd\x03",  # mov dx, 0x3fd
        b"\xec",  # in al, dx
        b"\xa8\x20",  # test al, 0x20: is the line free?
        (b"\x74", "rest", 1, 0),  # jz rest: a reader that is behind must not stop the guest
        b"\x88\xd8",  # mov al, bl
        b"\xb2\xf8",  # mov dl, 0xf8
        b"\xee",  # out dx, al
        b"\xfe\xc3",  # inc bl
        b"\x80\xfb\x5b",  # cmp bl, 'Z' + 1
        (b"\x75", "rest", 1, 0),  # jne rest
        b"\xb3A",  # mov bl, 'A'
        "rest:",
        b"\xfb\xf4" if sleep else b"\x90\x90",  # sti, hlt (until the timer) or nop, nop
        b"\xfa",  # cli
        (b"\xeb", "round", 1, 0),  # jmp round
    ]


def _tables() -> list[Part]:
    return [
        "timer:",  # the interrupt handler
        b"\x50",  # push eax
        b"\xb0\x20",  # mov al, 0x20
        b"\xe6\x20",  # out 0x20, al: end of interrupt
        b"\x58",  # pop eax
        b"\xcf",  # iretd
        "gdt:",
        struct.pack("<QQQ", 0, 0x00CF_9A00_0000_FFFF, 0x00CF_9200_0000_FFFF),  # null, code and data of 4 GiB
        "gdtr:",
        struct.pack("<H", 3 * 8 - 1),
        (b"", "gdt", 4, 0),
        "gate:",
        (b"", "timer", 2, 0),
        struct.pack("<HHH", 0x08, 0x8E00, 0),  # interrupt gate, code segment 0x08
        "idtr:",
        struct.pack("<H", (TIMER_VECTOR + 1) * 8 - 1),
        (b"", "gate", 4, -TIMER_VECTOR * 8),  # no other vector is ever raised, so the table needs no other entry
    ]
