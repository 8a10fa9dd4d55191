"""Held: a machine that is copied page by page at the end of each pause, to check the file against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.qemu import QemuProcess
from support.qemu_reader import read_stored
from support.qemu_saved import differences

from parallel_fixedram.core.protocols import Machine


class Held:
    """A Machine around another one.

    Args:
        machine: of the guest.
        guest: read from outside, past everything of ours.

    Attributes:
        copies: of every block, one for each pause.
    """

    def __init__(self, machine: Machine, guest: QemuProcess) -> None:
        self._machine = machine
        self._guest = guest
        self._blocks = guest.ramblocks()
        self.copies: list[dict[str, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def resume(self) -> str | None:
        with open(f"/proc/{self._guest.pid}/mem", "rb", buffering=0) as memory:
            copy = {}
            for block in self._blocks:
                memory.seek(block.hva)
                copy[block.name] = memory.read(block.used)
        self.copies.append(copy)
        return self._machine.resume()

    def wrong_pages(self, path: Path) -> dict[str, list[int]]:
        """Pages of a file that are not what they were in the last pause."""
        stored = {name: block.contents() for name, block in read_stored(path).blocks.items()}
        return differences(self.copies[-1], stored)
