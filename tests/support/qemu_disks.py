"""DiskGuest: a guest that notices when its disks are not what its memory knows of them, and the disks that it has.

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
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.qemu_tools import require_qemu, require_tool

from parallel_fixedram.experiments.boot_sector import Part, _image

MACHINE = "pc"
"""Has IDE."""
_SIZE = 8 << 20
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
class DiskGuest:
    """Images in a folder, and what a QEMU that has them as disks is started with.

    Four disks: virtio-blk on a raw image, virtio-scsi on a qcow2 image with a raw one behind it, IDE on qcow2, another
    virtio-blk on raw; pflash with variables; and a CD.
    """

    folder: Path

    def make(self) -> DiskGuest:
        """Make the images."""
        self._path("boot.img").write_bytes(checking_image().ljust(_SIZE, b"\0"))
        self._create("raw", "base.img", str(_SIZE))
        self._create("qcow2", "scsi.qcow2", behind="base.img")
        self._create("qcow2", "ide.qcow2", str(_SIZE))
        self._create("raw", "last.img", str(_SIZE))
        self._path("vars.fd").write_bytes(bytes(64 << 10))
        self._path("bios.fd").write_bytes(_bios())
        self._path("cd.iso").write_bytes(bytes(1 << 20))
        return self

    @property
    def images(self) -> dict[str, list[str]]:
        """Names of the images of each disk of a guest that runs, top first."""
        return {
            "first": ["boot.img"],
            "second": ["scsi.qcow2", "base.img"],
            "ide0-hd0": ["ide.qcow2"],
            "last": ["last.img"],
            "pflash1": ["vars.fd"],
        }

    def args(self) -> tuple[str, ...]:
        last = {
            "driver": "raw",
            "node-name": "l",
            "file": {"driver": "file", "filename": os.fspath(self._path("last.img"))},
        }
        return (
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={self._path('bios.fd')}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={self._path('vars.fd')}"),
            *("-drive", f"file={self._path('boot.img')},format=raw,if=none,id=b,cache=writeback"),
            *("-device", "virtio-blk-pci,drive=b,id=first,bootindex=1"),
            *("-blockdev", f"driver=file,node-name=sf,filename={self._path('scsi.qcow2')}"),
            *("-blockdev", "driver=qcow2,node-name=s,file=sf"),
            *("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=s,id=second"),
            *("-drive", f"file={self._path('ide.qcow2')},if=ide,index=0"),
            *("-drive", f"file={self._path('cd.iso')},if=ide,index=2,media=cdrom"),
            *("-blockdev", json.dumps(last), "-device", "virtio-blk-pci,drive=l,id=last"),
        )

    def sums(self) -> dict[str, str]:
        """Check sums of the images."""
        names = [name for images in self.images.values() for name in images]
        return {name: hashlib.sha256(self._path(name).read_bytes()).hexdigest() for name in names}

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _create(self, format: str, name: str, *more: str, behind: str = "") -> None:
        below = ("-F", "raw", "-b", os.fspath(self._path(behind))) if behind else ()
        command = [require_tool("qemu-img"), "create", "-q", "-f", format, *below, os.fspath(self._path(name)), *more]
        subprocess.run(command, check=True)


def _bios() -> bytes:
    """The BIOS that comes with QEMU, which says where it looks for it."""
    folders = subprocess.run([require_qemu(), "-L", "help"], capture_output=True, text=True, check=True).stdout
    return next(path for each in folders.splitlines() if (path := Path(each, "bios-256k.bin")).exists()).read_bytes()
