"""Zeros behind the end of a file, as tapes and volumes have them: QEMU never reads there, and we read the file too."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.cli import done, run
from support.command import report
from support.qemu_boot import BootFolder
from support.qemu_files import SavedGuest

MIB = 1 << 20
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def assert_good(boot: BootFolder, padded: SavedGuest, original: SavedGuest) -> None:
    """QEMU loads it, and every verb of ours takes it for what it was."""
    with padded.destination() as guest:
        guest.load(padded.uri)
    assert report("verify", padded.path)["ok"]
    assert report("diff", padded.path, original.path)["equal"]
    before, after = (report("inspect", saved.path) for saved in (original, padded))
    assert {**after, "file": "", "size": 0} == {**before, "file": "", "size": 0}
    for index, way in enumerate((("restore",), ("restore", "--shared"), ("clone",))):
        with BootFolder(boot.path / str(100 + index)) as folder:
            _, (guest,) = folder.start(*way[:1], padded.path, *way[1:], line=folder.line_of(padded))
            assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS


@pytest.mark.parametrize("whose", ["ours", "QEMU's"])
@pytest.mark.parametrize("padding", [4096, 3 * MIB + 1])
def test_a_padded_file_is_read_as_qemu_reads_it(
    qemu_files: dict[str, SavedGuest], ours: SavedGuest, boot: BootFolder, tmp_path: Path, whose: str, padding: int
) -> None:
    original = ours if whose == "ours" else qemu_files["plain"]
    padded = replace(original, path=Path(shutil.copyfile(original.path, tmp_path / "padded")))
    with padded.path.open("ab") as file:
        file.write(bytes(padding))
    assert_good(boot, padded, original)


def test_a_padded_file_can_get_a_clone_stream(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    original = qemu_files["plain"]
    padded = replace(original, path=Path(shutil.copyfile(original.path, tmp_path / "padded")))
    os.truncate(padded.path, padded.path.stat().st_size + 64 * MIB)
    boot.start("clone", padded.path, "--add-clone-stream", line=boot.line_of(padded))
    checked = report("verify", padded.path)
    assert (checked["ok"], checked["digests"]) == (True, True)


def test_a_volume_that_is_larger_than_the_file_is_read(ours: SavedGuest, boot: BootFolder, tmp_path: Path) -> None:
    image = Path(shutil.copyfile(ours.path, tmp_path / "volume"))
    os.truncate(image, image.stat().st_size + 5 * MIB)
    try:
        found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop devices here: {error}")
    device = Path(found.stdout.strip())
    try:
        assert_good(boot, replace(ours, path=device), ours)
        done(run("clone", device, "--print", "--", *boot.line_of(ours)))
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
