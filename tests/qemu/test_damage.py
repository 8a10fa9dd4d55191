"""Files with a flipped bit or without their end: verify accepts none of them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import refused, run
from support.command import report
from support.qemu_compose import compose
from support.qemu_files import SavedGuest
from support.qemu_reader import PAGE, Section, StoredGuest, read_stored, vm_description

import parallel_fixedram
from parallel_fixedram.core.errors import FormatError

MIB = 1 << 20


@pytest.fixture(scope="module")
def ours(qemu_files: dict[str, SavedGuest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file by our writer with the RAM and the device sections of a guest; who changes it changes it back."""
    folder = tmp_path_factory.mktemp("damage")
    yield compose(qemu_files["plain"], folder / "ours").path
    shutil.rmtree(folder)


def found_whole(path: Path, *, quick: bool = False) -> bool:
    """Whether verify finds nothing wrong."""
    try:
        return parallel_fixedram.verify(str(path), quick=quick).ok
    except FormatError:
        return False


# --- flipped bits


def places(ours: Path) -> dict[str, int]:
    """The offset of one byte of each kind."""
    said, stored = report("inspect", ours), read_stored(ours)
    main, bios = stored.blocks["m"], stored.blocks["pc.bios"]
    device, last = said["devices"][11], said["devices"][-1]
    end, size = said["stream_end"], said["size"]
    return {
        "magic": 0,
        "machine name": 14,
        "capability": 0x40,
        "section name": 0x4D,
        "total": 0x5B,
        "name of a block": main.record + 1,
        "used_length": main.record + 6,
        "version of a header": main.record + 13,
        "page size": main.record + 20,
        "bitmap_offset": main.record + 28,
        "pages_offset": main.record + 36,
        "bitmap of the RAM": main.bitmap + 100,
        "gap before the pages": main.start - 1,
        "first page": main.start + 5,
        "end of a present page": main.start + (int(main.bits.nonzero()[0][-1]) + 1) * PAGE - 1,
        "place of a zero page": main.start + int(main.bits.argmin()) * PAGE + 77,
        "bitmap of the firmware": bios.bitmap,
        "page of the firmware": bios.start + 63 * PAGE + 9,
        "EOS word": stored.ram_end + 7,
        "RAM END section": stored.ram_end + 13,
        "head of a device section": device["offset"] + 12,
        "body of a device section": device["offset"] + 100,
        "footer of a device section": device["offset"] + device["length"] - 1,
        "EOF byte": last["offset"] + last["length"],
        "VM description": end - 3,
        "gap before the trailer": end,
        "first page of the trailer": (end // PAGE + 1) * PAGE + 1000,
        "middle of the trailer": (end + size) // 2,
        "end of the trailer": size - 100,
        "footer of the trailer": size - 50,
        "digest of the trailer": size - 1,
    }


@contextlib.contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << bit]), offset)
        yield
        os.pwrite(file.fileno(), byte, offset)


@pytest.mark.parametrize("bit", [0, 6])
def test_verify_notices_a_flipped_bit_wherever_it_is(ours: Path, bit: int) -> None:
    unnoticed = []
    for where, offset in places(ours).items():
        with flipped(ours, offset, bit):
            if found_whole(ours):
                unnoticed.append(where)
    assert unnoticed == []
    assert found_whole(ours)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("first page", "block 'm' page 0"),
        ("page of the firmware", "block 'pc.bios' page 63"),
        ("bitmap of the RAM", "block 'm': the bytes before its pages (head, record, bitmap)"),
        ("body of a device section", "the end of the stream"),
    ],
)
def test_the_command_says_what_is_damaged(ours: Path, where: str, what: str) -> None:
    with flipped(ours, places(ours)[where], 0):
        found = run("verify", ours)
    assert found.code == 1
    assert f"{ours}: {what}" in found.out


def test_the_command_refuses_a_damaged_structure(ours: Path) -> None:
    with flipped(ours, places(ours)["EOS word"], 0):
        refused(run("verify", ours), 3, "unexpected RAM flags")


# --- missing ends


def cuts(stored: StoredGuest, sections: list[Section], eof: int) -> list[int]:
    """Lengths to cut a file to, some in every part of the stream up to its EOF byte."""
    lengths = [*range(14), 20, 24, 25, 40, 55, 59, 60, 66, 70, 71, 76, 80, 84, 88, 95, 96]
    for block in stored.blocks.values():
        header = block.record + 1 + len(block.name) + 8
        lengths += [block.record, block.record + 1, header - 1, header, header + 13, header + 28]
        lengths += [(block.bitmap + block.start) // 2, block.start, block.start + block.used - 1]
    main = next(iter(stored.blocks.values()))
    lengths += [main.bitmap + 1000, main.start + PAGE, main.start + 20 * MIB + 5, main.start + main.used - MIB]
    lengths += [stored.ram_end + count for count in (0, 7, 8, 12, 13, 20, 31)]
    for section in sections:
        lengths += [section.offset, section.offset + 3, section.offset + 7, section.offset + section.length // 2]
        lengths += [section.offset + section.length - 5, section.offset + section.length - 1]
    return [*lengths, eof]


def accepted(path: Path, folder: Path, lengths: list[int]) -> list[int]:
    """Cut a copy of a file shorter and shorter; returns the lengths at which ``verify --quick`` finds it whole."""
    copy = shutil.copyfile(path, folder / "copy")
    found = []
    for length in sorted(set(lengths), reverse=True):
        os.truncate(copy, length)
        if found_whole(copy, quick=True):
            found.append(length)
    copy.unlink()
    return found


@pytest.mark.parametrize("name", ["plain", "multifd", "no-vmdesc", "numa"])
def test_a_cut_file_by_qemu_is_refused(qemu_files: dict[str, SavedGuest], tmp_path: Path, name: str) -> None:
    path, described = qemu_files[name].path, qemu_files["plain" if name == "no-vmdesc" else name].path
    stored = read_stored(path, 0, vm_description(described))
    lengths = cuts(stored, stored.sections, stored.eof)
    if path == described:
        lengths += [stored.eof + 2, stored.eof + 6, stored.eof + 1000, path.stat().st_size - 1]
    assert accepted(path, tmp_path, [*lengths, path.stat().st_size]) == [path.stat().st_size]


def test_a_file_by_qemu_that_is_cut_behind_its_eof_byte_is_one_without_vm_description(
    qemu_files: dict[str, SavedGuest], tmp_path: Path
) -> None:
    path = qemu_files["plain"].path
    end = read_stored(path, 0, vm_description(path)).eof + 1
    assert accepted(path, tmp_path, [end - 1, end, end + 1]) == [end]


def test_a_cut_file_by_us_is_refused(ours: Path, tmp_path: Path) -> None:
    said, size = report("inspect", ours), ours.stat().st_size
    sections = [Section(*(each[name] for name in NAMES)) for each in said["devices"]]
    eof, end = sections[-1].offset + sections[-1].length, said["stream_end"]
    lengths = cuts(read_stored(ours), sections, eof)
    lengths += [eof + 1, eof + 2, eof + 6, end - 1, end, end + 1, (end // PAGE + 1) * PAGE, end + PAGE]
    lengths += [(end + size) // 2, size - PAGE, size - 56, size - 8, size - 1]
    assert accepted(ours, tmp_path, [*lengths, size]) == [size]


NAMES = ("name", "instance_id", "version_id", "offset", "length")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9999])
def test_the_command_refuses_a_cut_file(qemu_files: dict[str, SavedGuest], tmp_path: Path, share: float) -> None:
    copy = shutil.copyfile(qemu_files["plain"].path, tmp_path / "copy")
    os.truncate(copy, int(copy.stat().st_size * share))
    refused(run("verify", "--quick", copy), 3, " at 0x")
