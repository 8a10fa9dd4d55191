"""A guest that QEMU saved, saved again by our writer: every RAMBlock, QEMU's device sections, our trailer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support import saving
from support.qemu_files import SavedGuest

import parallel_fixedram
from parallel_fixedram.machines.ram_files import RamFile, RamFiles


class SavedMachine(RamFiles):
    """The stopped guest of a file by QEMU: RAM from raw copies, device sections out of that file."""

    def __init__(self, saved: SavedGuest) -> None:
        with parallel_fixedram.open_image(saved.uri) as image:
            file = image.file
        blocks = [RamFile(idstr=name, path=str(raw)) for name, raw in saved.blocks.items()]
        super().__init__(blocks, name=file.configuration.machine)
        data = saved.path.read_bytes()
        self._sections = b"".join(data[each.offset : each.offset + each.length] for each in file.devices)

    def device_state(self) -> bytes:
        return self._sections


def compose(saved: SavedGuest, path: Path) -> SavedGuest:
    """The same guest in a file by our writer."""
    with SavedMachine(saved) as machine:
        saving.save(machine, str(path), channels=4, experimental_multifd=True)
    return replace(saved, path=path, offset=0, capabilities=("mapped-ram",))
