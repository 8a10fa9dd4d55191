"""The guests and the harness themselves: what every other test with a real QEMU builds on."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.qemu import QemuDied, QemuError, QemuProcess, Ram, boot_from, require_tool
from support.qemu_files import SavedGuest
from support.qemu_linux import LinuxGuest
from support.qemu_saved import assert_one_instant

from parallel_fixedram.experiments.boot_sector import boot_image

PAGE = 4096
MIB = 1 << 20
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VARIANTS = [
    *("plain", "multifd", "direct-io", "offset-2m", "offset-123", "uuid", "no-vmdesc", "all-pages"),
    *("live", "numa"),
]


def after(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)]


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("interface", ["floppy", "ide"])
def test_the_boot_sector_prints_its_letters_in_turn(
    tmp_path: Path, qemu_binary: str, machine: str, interface: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(boot_image(hz=0))
    with QemuProcess("-drive", f"file={image},format=raw,if={interface},snapshot=on", machine=machine) as guest:
        assert guest.wait_serial("[A-Z]{28}")[0] == LETTERS + "AB"


def test_the_boot_sector_writes_its_range_and_nothing_else(tmp_path: Path, qemu_binary: str) -> None:
    image = tmp_path / "image"
    first, end = 2 * MIB, 40 * MIB
    image.write_bytes(boot_image(first=first, end=end, hz=19))
    with QemuProcess(*boot_from(image), ram=Ram(backend="file")) as guest:
        guest.wait_serial("C")
        guest.stop()
        pages = np.frombuffer(guest.ram_path.read_bytes(), np.uint8).reshape(-1, PAGE)
    numbers = np.arange(first // PAGE, end // PAGE)
    mine = pages[first // PAGE : end // PAGE]
    assert_one_instant(pages.tobytes(), first, end)
    addresses = np.ascontiguousarray(mine[:, 4:8]).view("<u4").ravel()
    assert np.array_equal(addresses, np.where(numbers % 2, numbers * PAGE, 0))
    assert not mine[:, 1:4].any()
    assert not mine[:, 8:].any()
    assert not pages[end // PAGE : 47 * MIB // PAGE].any()


@pytest.mark.parametrize("backend", ["default", "private", "memfd", "file"])
def test_ram_is_readable_from_outside_whatever_holds_it(ticker: list[str], backend: str) -> None:
    name = "pc.ram" if backend == "default" else "m"
    with QemuProcess(*ticker, ram=Ram(48 * MIB, backend=backend)) as guest:
        guest.wait_serial("B")
        guest.stop()
        main = next(block for block in guest.ramblocks() if block.name == name)
        assert (main.page_size, main.used, main.total) == (PAGE, 48 * MIB, 48 * MIB)
        ram = guest.read_block(name)
        assert len(ram) == 48 * MIB
        assert any(ram[MIB : 2 * MIB])
        if backend in ("memfd", "file"):
            assert guest.ram_path.read_bytes() == ram
        else:
            with pytest.raises(LookupError):
                _ = guest.ram_path


def test_nothing_is_left_behind(ticker: list[str]) -> None:
    guest = QemuProcess(*ticker, ram=Ram(backend="file"))
    with contextlib.suppress(ZeroDivisionError), guest:
        folder, ram, pid = guest.folder, guest.ram_path, guest.pid
        assert ram.exists()
        raise ZeroDivisionError
    assert not folder.exists()
    assert not ram.parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_death_of_qemu_ends_every_wait(ticker: list[str]) -> None:
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("A")
        guest.kill()
        with pytest.raises(QemuDied, match="no 'never' on the serial line"):
            guest.wait_serial("never")
        with pytest.raises(QemuDied):
            guest.stop()


def test_a_refusal_carries_the_words_of_qemu(qemu_binary: str, tmp_path: Path) -> None:
    with pytest.raises(QemuDied, match="unsupported machine type"), QemuProcess(machine="pdp11"):
        pass
    with QemuProcess(ram=Ram(MIB), paused=True) as guest, pytest.raises(QemuError, match="seekable transport"):
        guest.migrate("exec:true")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(64))
    with QemuProcess(incoming=True) as guest, pytest.raises(QemuError, match="Not a migration stream"):
        guest.load(f"file:{garbage}")


@pytest.mark.parametrize("name", VARIANTS)
def test_qemu_loads_its_own_file_and_the_guest_goes_on(qemu_files: dict[str, SavedGuest], name: str) -> None:
    saved = qemu_files[name]
    with saved.destination() as guest:
        guest.load(saved.uri)
        assert guest.status() == saved.loaded
        if saved.loaded == "paused":
            for block, contents in saved.blocks.items():
                assert guest.read_block(block) == contents.read_bytes(), block
            guest.cont()
        letters = guest.wait_serial("[A-Z]{2}")[0]
    assert letters[1] == after(letters[0])


def stored(saved: SavedGuest) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Bits and pages of the main RAM as they stand in the file, found by the record's first bytes."""
    data = saved.path.read_bytes()
    size = len(saved.blocks["m"].read_bytes())
    header = data.index(b"\x01m" + struct.pack(">Q", size)) + 10
    version, page_size, bitmap, pages = struct.unpack_from(">IQQQ", data, header)
    assert (version, page_size) == (1, PAGE)
    bits = np.unpackbits(np.frombuffer(data, np.uint8, size // PAGE // 8, bitmap), bitorder="little")
    return bits.astype(bool), np.frombuffer(data, np.uint8, size, pages).reshape(-1, PAGE)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "numa"])
def test_qemus_file_holds_the_ram(qemu_files: dict[str, SavedGuest], name: str) -> None:
    bits, pages = stored(qemu_files[name])
    ram = np.frombuffer(qemu_files[name].blocks["m"].read_bytes(), np.uint8).reshape(-1, PAGE)
    assert np.array_equal(pages[bits], ram[bits])
    assert not ram[~bits].any()
    stale = pages[~bits].any(axis=1).sum()
    assert (stale > 0) == (name == "live")
    assert bits.all() == (name == "all-pages")


def test_a_background_snapshot_has_pages_but_no_bitmap(background_snapshot: SavedGuest) -> None:
    bits, pages = stored(background_snapshot)
    assert not bits.any()
    assert pages.tobytes() == background_snapshot.blocks["m"].read_bytes()


def test_what_is_missing_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="install the package xfsprogs"):
        require_tool("mkfs.xfs", path="/nonexistent")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install the package xfsprogs"):
        require_tool("mkfs.xfs", path="/nonexistent")


def test_linux_ticks_and_dirties_memory_on_command(linux: LinuxGuest) -> None:
    with QemuProcess(*linux.args(size_mib=4), ram=Ram(256 * MIB)) as guest:
        assert guest.wait_serial(r"tick 1 (\w+)\r")[1] == linux.md5(4)
        guest.send_serial("dirty 16")
        guest.wait_serial("dirtied 16\r")
        guest.send_serial("sum")
        assert guest.wait_serial(r"sum (\w+) \w+\r")[1] == linux.md5(4)
        guest.send_serial("off")
        assert guest.wait_exit() == 0


def test_linux_goes_on_from_qemus_own_file(linux: LinuxGuest, tmp_path: Path) -> None:
    args = linux.args(size_mib=8)
    saved = f"file:{tmp_path / 'saved'}"
    with QemuProcess(*args, ram=Ram(256 * MIB)) as guest:
        number = int(guest.wait_serial(r"tick (\d+) \w+\r")[1])
        guest.stop()
        guest.migrate(saved)
    with QemuProcess(*args, ram=Ram(256 * MIB), incoming=True) as guest:
        guest.load(saved)
        guest.cont()
        tick = guest.wait_serial(r"tick (\d+) (\w+)\r")
    assert int(tick[1]) > number  # not again from 1
    assert tick[2] == linux.md5(8)
