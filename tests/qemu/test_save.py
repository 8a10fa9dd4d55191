"""Our save of a guest's shared RAM against QEMU's own save of the same guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.command import report
from support.qemu import QemuProcess, Ram
from support.qemu_linux import LinuxGuest
from support.qemu_reader import PAGE, read_stored

MIB = 1 << 20


def assert_saved_as_qemu_does(guest: QemuProcess, folder: Path, *options: object) -> None:
    """Save a stopped guest with the command, then let QEMU do it, and compare the files page by page."""
    ours, qemus, ram = folder / "ours", folder / "qemus", guest.ram_path
    saved = report("save", ours, "--ram", f"m={ram}", *options)
    assert report("verify", ours, "--ram", f"m={ram}")["ram"] == ["m"]

    guest.migrate(f"file:{qemus}")
    mine, theirs = (read_stored(path).blocks["m"] for path in (ours, qemus))
    assert mine.bits.tolist() == theirs.bits.tolist()
    for page in mine.bits.nonzero()[0]:
        assert mine.pages[page].tobytes() == theirs.pages[page].tobytes(), f"page {page}"
    assert mine.contents() == theirs.contents() == ram.read_bytes()
    assert mine.stale() == 0
    assert [block["data_pages"] for block in saved["blocks"]] == [theirs.bits.sum()]

    assert report("verify", qemus, "--ram", f"m={ram}")["bad_pages"] == 0
    difference = report("diff", ours, qemus, code=1)  # 1 for the blocks that shared RAM does not hold
    assert (difference["differing_pages"], difference["only_in_a"]) == (0, [])
    assert difference["only_in_b"] == [name for name in read_stored(qemus).blocks if name != "m"]


@pytest.mark.parametrize("direct", ["off", "on"])
@pytest.mark.parametrize("channels", [1, 4])
def test_our_file_holds_page_by_page_what_qemus_own_holds(
    ticker: list[str], tmp_path: Path, channels: int, direct: str
) -> None:
    with QemuProcess(*ticker, ram=Ram(backend="file")) as guest:
        guest.wait_serial("C")
        guest.stop()
        options = ("--channels", channels, "--direct-io", direct, "--experimental-multifd")
        assert_saved_as_qemu_does(guest, tmp_path, *options)


def test_a_memfd_is_reached_through_the_descriptor_of_its_process(ticker: list[str], tmp_path: Path) -> None:
    with QemuProcess(*ticker, ram=Ram(backend="memfd")) as guest:
        guest.wait_serial("C")
        guest.stop()
        assert guest.ram_path.is_relative_to(f"/proc/{guest.pid}/fd")
        assert_saved_as_qemu_does(guest, tmp_path, "--channels", 2, "--experimental-multifd")


def test_a_linux_guest_is_saved_as_qemu_does_it(linux: LinuxGuest, tmp_path: Path) -> None:
    with QemuProcess(*linux.args(size_mib=8), ram=Ram(256 * MIB, backend="file")) as guest:
        assert guest.wait_serial(r"tick \d+ (\w+)\r")[1] == linux.md5(8)
        guest.stop()
        assert_saved_as_qemu_does(guest, tmp_path, "--channels", 4, "--experimental-multifd")


def test_verify_finds_exactly_the_pages_that_changed_since_the_save(ticker: list[str], tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with QemuProcess(*ticker, ram=Ram(backend="file")) as guest:
        guest.wait_serial("C")
        guest.stop()
        report("save", saved, "--ram", f"m={guest.ram_path}")
        present = read_stored(saved).blocks["m"].bits
        untouched, gone = int(present.argmin()), 2 * MIB // PAGE + 1  # odd pages hold their address, so are never zero
        assert present[gone]
        with guest.ram_path.open("r+b", buffering=0) as ram:
            os.pwrite(ram.fileno(), b"\1", untouched * PAGE + PAGE - 1)
            os.pwrite(ram.fileno(), bytes(PAGE), gone * PAGE)
        found = report("verify", saved, "--ram", f"m={guest.ram_path}", code=1)
        runs = [(each["first_page"], each["pages"]) for each in found["differences"]]
        assert runs == sorted([(untouched, 1), (gone, 1)])


def test_our_save_leaves_untouched_what_the_guest_never_touched_and_qemus_does_not(
    ticker: list[str], tmp_path: Path
) -> None:
    with QemuProcess(*ticker, ram=Ram(256 * MIB, backend="file")) as guest:
        guest.wait_serial("C")
        guest.stop()

        def allocated() -> int:
            return os.stat(guest.ram_path).st_blocks * 512

        before = allocated()
        assert 40 * MIB <= before < 64 * MIB
        report("save", tmp_path / "ours", "--ram", f"m={guest.ram_path}", "--channels", 4, "--experimental-multifd")
        assert allocated() == before
        report("verify", tmp_path / "ours", "--ram", f"m={guest.ram_path}")
        assert allocated() == before
        guest.migrate(f"file:{tmp_path / 'qemus'}")
        assert allocated() == 256 * MIB
