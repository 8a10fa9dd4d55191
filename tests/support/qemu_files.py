"""QEMU's own mapped-ram files, one for each way of writing them, and what the RAM held at that moment.

::

    guest --stop--> save plain --load--> save multifd        every loaded guest stays stopped, so all of them
                               --load--> save offset ...     have the same RAM

(A process cannot save one stopped guest twice: after the first time QEMU wants it to run in between.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.qemu import QemuProcess, Ram, boot_from

from parallel_fixedram.experiments.boot_sector import boot_image

MIB = 1 << 20
RAM_SIZE = 64 * MIB
RAM = Ram(RAM_SIZE)
DIRTY_END = 24 * MIB
"""The guest leaves what lies behind it zero, up to the BIOS's tables at the end."""

UUID = "8f3c1b52-6f1d-4c53-9a0e-0d6f2f7f1c11"


@dataclass(frozen=True, kw_only=True)
class SavedGuest:
    """A mapped-ram file written by QEMU."""

    path: Path
    blocks: Mapping[str, Path]
    """By RAMBlock name: a raw, sparse copy of its contents at the moment of the save."""
    offset: int = 0
    """Where the stream starts in the file."""
    args: tuple[str, ...]
    """What a QEMU that loads it has to be started with."""
    ram: Ram | None = RAM
    machine: str = "q35"
    loaded: str = "paused"
    """Run state after loading."""
    capabilities: tuple[str, ...] = ("mapped-ram",)
    """What it was saved with."""

    @property
    def uri(self) -> str:
        return f"file:{self.path}" + (f",offset={self.offset}" if self.offset else "")

    def destination(self) -> QemuProcess:
        """A process that can load the file: ``with saved.destination() as qemu: qemu.load(saved.uri)``."""
        return QemuProcess(*self.args, ram=self.ram, machine=self.machine, incoming=True)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """A way to write the stopped guest again."""

    capabilities: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    machine: str = "q35"
    offset: int = 0


_MULTIFD = {"multifd-channels": 2}
_WAYS = {
    "multifd": _Way(capabilities=("multifd",), parameters=_MULTIFD),
    "direct-io": _Way(capabilities=("multifd",), parameters={**_MULTIFD, "direct-io": True}),
    "offset-2m": _Way(offset=2 * MIB),
    "offset-123": _Way(offset=123),
    "uuid": _Way(capabilities=("validate-uuid",), args=("-uuid", UUID)),
    "no-vmdesc": _Way(machine="q35,suppress-vmdesc=on"),
    "all-pages": _Way(parameters={"zero-page-detection": "none"}),
}


class Variants(dict[str, SavedGuest]):
    """Every variant by its name, each written into ``folder`` when somebody first asks for it.

    ``plain``, ``multifd``, ``direct-io``, ``offset-2m``, ``offset-123``, ``uuid``, ``no-vmdesc`` (a stream without
    VMDESC) and ``all-pages`` (no zero page detection, every bit set) are of the same stopped guest.
    ``live`` was saved while its guest ran: it has stale pages behind cleared bits.
    ``numa`` has its RAM in two blocks, ``n0`` shared and ``n1`` private.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> SavedGuest:
        self[name] = self._write(name)
        return self[name]

    def _write(self, name: str) -> SavedGuest:
        match name:
            case "plain":
                return _stopped(self._folder, name)
            case "live":
                return _live(self._folder)
            case "numa":
                half = f"size={RAM_SIZE // 2}"
                nodes = (
                    *("-m", f"{RAM_SIZE}B", "-object", f"memory-backend-memfd,id=n0,{half},share=on"),
                    *("-numa", "node,memdev=n0", "-object", f"memory-backend-ram,id=n1,{half}"),
                    *("-numa", "node,memdev=n1"),
                )
                return _stopped(self._folder, name, *nodes, ram=None, end=RAM_SIZE - 8 * MIB)
        return _again(self["plain"], name, _WAYS[name])


def _boot(folder: Path, name: str, hz: int, end: int = DIRTY_END) -> list[str]:
    image = folder / f"{name}.img"
    image.write_bytes(boot_image(end=end, hz=hz))
    return boot_from(image)


def write_background_snapshot(folder: Path) -> SavedGuest:
    """A file of a stopped guest that QEMU 10.0 calls completed, but whose bitmaps it never wrote: it cannot be loaded.

    Raises:
        QemuError: the host has no userfaultfd with write protection, or does not let us use it.
    """
    return _stopped(folder, "background", capabilities=("mapped-ram", "background-snapshot"))


def _stopped(
    folder: Path,
    name: str,
    *more: str,
    ram: Ram | None = RAM,
    end: int = DIRTY_END,
    capabilities: tuple[str, ...] = ("mapped-ram",),
) -> SavedGuest:
    args = (*_boot(folder, name, 100, end), *more)
    with QemuProcess(*args, ram=ram) as guest:
        guest.wait_serial("C")
        guest.stop()
        path = folder / name
        guest.migrate(f"file:{path}", capabilities)
        blocks = _dump(guest, folder / f"{name}-ram")
        return SavedGuest(path=path, blocks=blocks, args=args, ram=ram, capabilities=capabilities)


def _again(plain: SavedGuest, name: str, way: _Way) -> SavedGuest:
    path = plain.path.with_name(name)
    saved = SavedGuest(
        path=path,
        blocks=plain.blocks,
        offset=way.offset,
        args=(*plain.args, *way.args),
        machine=way.machine,
        capabilities=("mapped-ram", *way.capabilities),
    )
    with saved.destination() as guest:
        guest.load(plain.uri)
        guest.migrate(saved.uri, saved.capabilities, way.parameters)
    return saved


def _live(folder: Path) -> SavedGuest:
    args = tuple(_boot(folder, "live", hz=0))
    path = folder / "live"
    with QemuProcess(*args, ram=RAM) as guest:
        guest.wait_serial("C")
        guest.migrate(f"file:{path}")  # ends with the guest stopped, so its RAM is what was saved
        return SavedGuest(path=path, blocks=_dump(guest, folder / "live-ram"), args=args, loaded="running")


def _dump(guest: QemuProcess, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    blocks = {}
    for number, block in enumerate(guest.ramblocks()):
        blocks[block.name] = folder / str(number)
        with blocks[block.name].open("wb") as raw:
            data = memoryview(guest.read_block(block.name))
            for start in range(0, len(data), MIB):
                piece = data[start : start + MIB]
                if piece.tobytes().strip(b"\0"):
                    os.pwrite(raw.fileno(), piece, start)
            raw.truncate(len(data))
    return blocks
