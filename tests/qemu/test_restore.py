"""QEMU's own files restored into shared memory, which then is what the guest's RAM was, byte by byte."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import report
from support.qemu_files import SavedGuest

PAGE = 4096
MIB = 1 << 20
VARIANTS = [
    *("plain", "multifd", "direct-io", "offset-2m", "offset-123", "uuid", "no-vmdesc", "all-pages"),
    *("live", "numa"),
]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in shared memory."""
    with tempfile.TemporaryDirectory(prefix="restore-", dir="/dev/shm") as folder:
        yield Path(folder)


def destinations(saved: SavedGuest, folder: Path) -> dict[str, Path]:
    return {block: folder / str(number) for number, block in enumerate(saved.blocks)}


def restore(saved: SavedGuest, places: dict[str, Path], channels: int) -> None:
    """Restore every block with the command and compare it with its raw copy."""
    ram = [option for block, path in places.items() for option in ("--ram", f"{block}={path}")]
    done = report("restore", saved.uri, *ram, "--channels", channels, "--experimental-multifd")
    assert ([each["idstr"] for each in done["blocks"]], done["left_out"]) == (list(saved.blocks), [])
    for block, path in places.items():
        assert path.read_bytes() == saved.blocks[block].read_bytes(), block


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_restore_over_garbage_gives_the_ram_of_the_guest(
    qemu_files: dict[str, SavedGuest], shared: Path, name: str, channels: int
) -> None:
    saved = qemu_files[name]
    places = destinations(saved, shared)
    for block, path in places.items():
        size = saved.blocks[block].stat().st_size
        path.write_bytes(random.Random(block).randbytes(min(size, MIB)) * (size // min(size, MIB)))
    restore(saved, places, channels)


def test_restore_over_patches_of_garbage_gives_the_ram_of_the_guest(
    qemu_files: dict[str, SavedGuest], shared: Path
) -> None:
    saved = qemu_files["live"]
    places = destinations(saved, shared)
    patches = random.Random(11)
    for block, path in places.items():
        size = saved.blocks[block].stat().st_size
        with path.open("wb") as ram:
            ram.truncate(size)
            for _ in range(1 + size // (64 << 10)):
                start = patches.randrange(size)
                ram.seek(start)
                ram.write(b"\x5a" * min(patches.choice([1, 4096, 50_000]), size - start))
    restore(saved, places, 4)


def test_restore_over_another_guest_gives_the_ram_of_the_guest(qemu_files: dict[str, SavedGuest], shared: Path) -> None:
    places = destinations(qemu_files["plain"], shared)
    for block, path in places.items():
        shutil.copyfile(qemu_files["live"].blocks[block], path)
    restore(qemu_files["plain"], places, 4)


def test_restore_makes_files_that_take_the_present_pages_and_no_more(
    qemu_files: dict[str, SavedGuest], shared: Path
) -> None:
    saved = qemu_files["plain"]
    places = destinations(saved, shared)
    restore(saved, places, 4)
    present = {block["idstr"]: block["data_pages"] for block in report("inspect", saved.uri)["blocks"]}
    assert {block: path.stat().st_blocks * 512 // PAGE for block, path in places.items()} == present
