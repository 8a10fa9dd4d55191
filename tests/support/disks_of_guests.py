"""A guest with disks of every kind, written from outside: QEMU's own ``qemu-io`` goes the way of the guest's writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.qemu import QemuProcess, Ram
from support.qemu_tools import require_tool

MIB = 1 << 20
SIZE = 16 * MIB
FLASH = 256 << 10
OFFSETS = (0, SIZE // 2, SIZE - 4096)
"""Where ``write`` writes; of the flash only the first."""

BIOS = ("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin")


def qemu_img(*args: object) -> str:
    command = [require_tool("qemu-img"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class ManyDisks:
    """Images of ``many_disks`` in a folder.

    Attributes:
        raw: virtio-blk, by a thread of its own.
        qcow2: virtio-scsi, by two nodes.
        top: IDE, qcow2 on ``base``.
        flash: firmware's variables.
    """

    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / "disk.img"

    @property
    def qcow2(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def base(self) -> Path:
        return self.folder / "base.img"

    @property
    def top(self) -> Path:
        return self.folder / "top.qcow2"

    @property
    def flash(self) -> Path:
        return self.folder / "vars.fd"

    @property
    def written(self) -> dict[str, Path]:
        """Image of each disk, by its name."""
        return {"blk": self.raw, "scsi": self.qcow2, "ide0-hd0": self.top, "pflash1": self.flash}

    def one(self) -> list[str]:
        """Arguments for the first of them alone."""
        return [
            *("-object", "iothread,id=io"),
            *("-drive", f"file={self.raw},format=raw,if=none,id=raw"),
            *("-device", "virtio-blk-pci,drive=raw,iothread=io,id=blk"),
        ]

    def args(self) -> list[str]:
        """Arguments for all of them."""
        code = next(path for path in BIOS if os.path.exists(path))
        return [
            *self.one(),
            *("-blockdev", f"driver=file,node-name=qfile,filename={self.qcow2}"),
            *("-blockdev", "driver=qcow2,node-name=q,file=qfile"),
            *("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=q,id=scsi"),
            *("-drive", f"file={self.top},format=qcow2,if=ide"),
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={self.flash}"),
        ]


def make_images(folder: Path) -> ManyDisks:
    made = ManyDisks(folder)
    for path, size in ((made.raw, SIZE), (made.base, SIZE), (made.flash, FLASH)):
        with open(path, "wb") as file:
            file.truncate(size)
    qemu_img("create", "-q", "-f", "qcow2", made.qcow2, SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", made.base, made.top)
    return made


@contextlib.contextmanager
def many_disks(disks: ManyDisks, ticker: list[str], *more: str) -> Iterator[QemuProcess]:
    """The boot-sector guest with all of them."""
    with QemuProcess(*ticker, *disks.args(), *more, ram=Ram(), machine="pc") as guest:
        guest.wait_serial("C")
        yield guest


def _block_names(guest: QemuProcess) -> dict[str, str]:
    """What ``qemu-io`` calls each disk that is written: its drive, else its device."""
    return {
        _name(each): each["device"] or f"-d {each['qdev']}"
        for each in guest.qmp("query-block")
        if each.get("inserted", {}).get("ro") is False
    }


def _name(drive: dict[str, str]) -> str:
    if not drive["qdev"].startswith("/"):
        return drive["qdev"]
    parts = drive["qdev"].split("/")
    return parts[3] if parts[2] == "peripheral" else drive["device"]


def write(guest: QemuProcess, number: int) -> None:
    """Have every disk written at every place: 4 KiB of that number."""
    for name, block in _block_names(guest).items():
        for offset in OFFSETS[: 1 if name.startswith("pflash") else None]:
            assert guest.hmp(f'qemu-io {block} "write -P {number} {offset} 4096"') == ""
        assert guest.hmp(f'qemu-io {block} "flush"') == ""  # whoever reads the image from outside shall see it


def read(path: Path, kind: str, scratch: Path) -> bytes:
    """What an image shows to a guest; it may be in use."""
    copy = scratch / f"{path.name}.raw"
    qemu_img("convert", "-U", "-f", kind, "-O", "raw", path, copy)
    data = copy.read_bytes()
    copy.unlink()
    return data


def numbers(data: bytes) -> set[int]:
    """What ``write`` has left of a disk; 0 where nothing was."""
    offsets = OFFSETS if len(data) == SIZE else OFFSETS[:1]
    return {number for at in offsets for number in set(data[at : at + 4096])}


def copy_of(disks: ManyDisks, folder: Path) -> ManyDisks:
    """The same contents elsewhere."""
    folder.mkdir()
    for path in disks.folder.iterdir():
        shutil.copy(path, folder)
    return ManyDisks(folder)
