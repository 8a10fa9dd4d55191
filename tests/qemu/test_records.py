"""A Linux guest that counts, and writes what it counts to its disks: memory and disks agree wherever it is saved.

Each guest says of itself what it finds: the number that its memory has, and the numbers of two disks, one of them with
a file system (tests/support/guests/init, keep_records).
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from support.cli import done, run
from support.command import report
from support.disks_of_guests import qemu_img
from support.examples import thorough
from support.qemu import QemuProcess, Ram
from support.qemu_boot import BootFolder, Guest
from support.qemu_linux import LinuxGuest
from support.qemu_tools import require_tool

MIB = 1 << 20
RAM = Ram(256 * MIB)
RECORD = r"record (\d+) (\w+)[ \d]*\r"
MORE = 3
"""Records that each guest has to keep on its own."""


def fsck(path: Path) -> None:
    subprocess.run([require_tool("e2fsck"), "-fn", str(path)], check=True, capture_output=True)


def raw_copy(path: Path, kind: str, folder: Path) -> Path:
    copy = folder / f"{path.stem}.raw"
    qemu_img("convert", "-f", kind, "-O", "raw", path, copy)
    return copy


def goes_on(guest: Guest | QemuProcess, more: int = MORE) -> int:
    """Wait for so many records that are kept; returns the first one's number."""
    first = None
    for _ in range(more):
        found = guest.wait_serial(RECORD)
        assert found[2] == "kept", found[0]
        first = first or int(found[1])
    assert first is not None
    return first


@pytest.fixture
def disks(tmp_path: Path) -> list[str]:
    records, files = tmp_path / "records.img", tmp_path / "files.raw"
    for path in (records, files):
        with path.open("wb") as file:
            file.truncate(32 * MIB)
    subprocess.run([require_tool("mkfs.ext4"), "-q", str(files)], check=True)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", files, tmp_path / "files.qcow2")
    files.unlink()
    return [
        *("-drive", f"file={records},format=raw,if=virtio,cache=none,aio=native"),
        *("-drive", f"file={tmp_path / 'files.qcow2'},format=qcow2,if=virtio"),
    ]


def test_memory_and_disks_of_every_guest_agree_to_the_record(
    linux: LinuxGuest, tmp_path: Path, disks: list[str]
) -> None:
    chance = random.Random("records")
    args = (*linux.args(tick=600, more="virtio"), *disks)
    with QemuProcess(*args, ram=RAM) as guest:
        guest.wait_serial("ready")
        guest.send_serial("records")
        for number in range(20 if thorough() else 2):
            guest.take_serial()
            goes_on(guest, chance.randint(1, 4))
            path = tmp_path / "saved"
            done(run("save", path, "--qmp", guest.monitor_path, "--disks", "overlay", "--overwrite"))
            guest.take_serial()
            after = goes_on(guest)
            for verb, count in (("restore", 1), ("clone", 2)):
                with BootFolder(tmp_path / f"{verb}{number}") as boot:
                    options = ("--count", count) if verb == "clone" else ()
                    line = boot.line(*args, ram=RAM, clones=count if options else 0)
                    for each in boot.start(verb, path, *options, line=line).guests:
                        assert goes_on(each) <= after
        report("disks", "commit", "--qmp", guest.monitor_path)
        goes_on(guest)
        guest.take_serial()
        guest.send_serial("rest_records")
        guest.wait_serial("umounted")
        last = max(int(each) for each in _numbers(tmp_path / "records.img"))
        guest.send_serial("off")
        guest.wait_exit()
    assert [path.name for path in tmp_path.iterdir() if "fixedram-" in path.name] == []
    files = raw_copy(tmp_path / "files.qcow2", "qcow2", tmp_path)
    fsck(files)
    assert _numbers(tmp_path / "records.img") == [str(each) for each in range(1, last + 1)]
    shown = subprocess.run(
        [require_tool("debugfs"), "-R", "cat number", str(files)], check=True, capture_output=True, text=True
    )
    assert int(shown.stdout) in (last, last - 1)


def _numbers(path: Path) -> list[str]:
    """Of all records of a disk."""
    data = path.read_bytes()
    blocks = (data[at : at + 4096] for at in range(4096, len(data), 4096))
    return [block.split()[1].decode() for block in blocks if block.strip(b"\0")]
