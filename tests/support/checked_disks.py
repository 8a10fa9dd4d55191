"""CheckedDisks: disks of a guest that notices when they are not what its memory knows of them.

::

    boot sector, over and over:  for each disk: read a sector; is it the number that memory says? if not, print !
                                                write the next number; note it in memory
                                 print the next letter of A..Z
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from support.disks_of_guests import SIZE, ManyDisks, make_images

from parallel_fixedram.experiments.boot_sector import Part, _image

MACHINE = "pc"
"""Has IDE."""
_NUMBERS, _BUFFER = 0x8100, 0x8200
_DISKS = 0x475
"""Where the BIOS says how many disks there are."""


def checking_image() -> bytes:
    """A disk whose boot sector does that, by way of the BIOS and its drivers; the number is in sector 1."""
    print_bl: list[Part] = [
        b"\x52\xba\xf8\x03\x88\xd8\xee\x5a"
    ]  # push dx; mov dx, 0x3f8; mov al, bl; out dx, al; pop dx
    return _image(
        b"\xfa\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\xfb\xfc",  # flat segments, a stack, cld
        b"\xbf" + struct.pack("<H", _NUMBERS),  # mov di, NUMBERS
        b"\xb9\x20\x00\xf3\xab",  # mov cx, 32; rep stosw
        b"\xb3A",  # mov bl, 'A'
        "round:",
        b"\xb2\x80",  # mov dl, 0x80: the first disk
        b"\xbf" + struct.pack("<H", _NUMBERS),  # mov di, NUMBERS
        "disk:",
        b"\xb4\x42",  # mov ah, 0x42: extended read
        (b"\xbe", "packet", 2, 0),  # mov si, packet
        b"\xcd\x13",  # int 0x13
        (b"\x72", "failed", 1, 0),  # jc failed
        b"\x66\xa1" + struct.pack("<H", _BUFFER),  # mov eax, [BUFFER]
        b"\x66\x3b\x05",  # cmp eax, [di]
        (b"\x75", "failed", 1, 0),  # jne failed
        b"\x66\x40",  # inc eax
        b"\x66\xa3" + struct.pack("<H", _BUFFER),  # mov [BUFFER], eax
        b"\xb8\x00\x43",  # mov ax, 0x4300: extended write
        (b"\xbe", "packet", 2, 0),  # mov si, packet
        b"\xcd\x13",  # int 0x13
        (b"\x72", "failed", 1, 0),  # jc failed
        b"\x66\xa1" + struct.pack("<H", _BUFFER),  # mov eax, [BUFFER]
        b"\x66\x89\x05",  # mov [di], eax
        b"\x83\xc7\x04",  # add di, 4
        b"\xfe\xc2",  # inc dl
        b"\x88\xd0\x24\x7f",  # mov al, dl; and al, 0x7f
        b"\x3a\x06" + struct.pack("<H", _DISKS),  # cmp al, [DISKS]
        (b"\x72", "disk", 1, 0),  # jb disk
        *print_bl,
        b"\xfe\xc3\x80\xfb\x5b\x75\x02\xb3A",  # inc bl; after 'Z' comes 'A'
        b"\xf4",  # hlt: until the timer
        (b"\xeb", "round", 1, 0),  # jmp round
        "failed:",
        b"\xb3!",  # mov bl, '!'
        *print_bl,
        b"\xf4",  # hlt
        (b"\xeb", "failed", 1, 0),  # jmp failed
        "packet:",
        struct.pack("<BBHHHQ", 16, 0, 1, _BUFFER, 0, 1),  # one sector, number 1
    )


@dataclass(frozen=True)
class CheckedDisks:
    """``ManyDisks`` in a folder, the guest's own disk in front of them, and a CD."""

    folder: Path

    def make(self) -> CheckedDisks:
        """Make the images."""
        make_images(self.folder)
        (self.folder / "boot.img").write_bytes(checking_image().ljust(SIZE, b"\0"))
        (self.folder / "cd.iso").write_bytes(bytes(1 << 20))
        return self

    @property
    def images(self) -> dict[str, list[Path]]:
        """The images of each disk that the guest can write to, top first."""
        many = ManyDisks(self.folder)
        images = {"first": [self.folder / "boot.img"], **{name: [path] for name, path in many.written.items()}}
        images["ide0-hd0"].append(many.base)
        return images

    def args(self) -> tuple[str, ...]:
        file = {"driver": "file", "filename": os.fspath(self.folder / "boot.img")}
        return (
            *("-blockdev", json.dumps({"driver": "raw", "node-name": "boot", "file": file})),
            *("-device", "virtio-blk-pci,drive=boot,id=first,bootindex=1"),
            *("-drive", f"file={self.folder / 'cd.iso'},if=ide,index=2,media=cdrom"),
            *ManyDisks(self.folder).args(),
        )

    def sums(self) -> dict[str, str]:
        """Check sums of the images."""
        every = [path for images in self.images.values() for path in images]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in every}
