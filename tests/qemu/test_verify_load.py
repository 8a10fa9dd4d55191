"""``verify FILE --load -- qemu ...``: what a QEMU makes of a file is what the file says, and no guest runs for that."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.cli import Result, call, refused
from support.command import report
from support.observers import Heard
from support.qemu import QemuProcess
from support.qemu_boot import BootFolder, HeldBoot, children, ends, sha256
from support.qemu_files import SavedGuest

from parallel_fixedram.verbs.verify_by_loading import verify_by_loading

MIB = 1 << 20


def argv_of(saved: SavedGuest, boot: BootFolder, *options: str, line: list[str] | None = None) -> list[str]:
    options = ("--load", *options, "--run-dir", str(boot.run_dir))
    return ["verify", saved.uri, *options, "--", *(line or boot.line_of(saved))]


def loaded(saved: SavedGuest, boot: BootFolder, *options: str, line: list[str] | None = None) -> Result:
    """Run the command; nothing is left of its QEMU, whose guest has said nothing."""
    result = call(*argv_of(saved, boot, *options, line=line))
    if result.code == 4:
        boot.take_logs(result)
    boot.assert_empty()
    assert boot.serial_text() == ""
    return result


@pytest.mark.parametrize("name", ["plain", "live", "numa", "offset-123", "no-vmdesc", "all-pages"])
def test_what_qemu_makes_of_its_own_file_is_what_the_file_says(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, name: str
) -> None:
    saved = qemu_files[name]
    before = sha256(saved.path)
    found = loaded(saved, boot, "--json")
    blocks = report("inspect", saved.uri)["blocks"]
    assert (found.code, found.json["ok"], found.json["bad_pages"]) == (0, True, 0)
    assert found.json["ram"] == [block["idstr"] for block in blocks]
    assert found.json["ram_bytes"] == sum(block["used_length"] for block in blocks)
    assert found.json["loaded_by"] == boot.line_of(saved)[0]
    assert sha256(saved.path) == before


def test_a_file_of_ours_is_loaded_next_to_the_guest_that_runs_on_with_its_disk(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    """Neither lock nor disk are touched, where a guest that is to run is refused."""
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(MIB))
    plain = qemu_files["plain"]
    devices = ("-drive", f"file={disk},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d", "-device", "VGA")
    saved = replace(plain, path=tmp_path / "vm.mr", args=(*plain.args, *devices))
    with QemuProcess(*saved.args, ram=saved.ram) as source:
        source.wait_serial("C")
        report("save", saved.path, "--qmp", source.monitor_path, "--disks", "none")
        before = sha256(disk)
        found = loaded(saved, boot)
        assert found.code == 0, found
        assert f"loaded it, and all of its RAM was compared: {len(source.ramblocks())} blocks, 80." in found.out
        assert found.out.endswith(": ok (structure, digests, loaded RAM checked)\n")
        assert sha256(disk) == before
        source.wait_serial("[A-Z]{10}")
        result = boot.attempt("restore", saved.path, line=boot.line_of(saved))
        refused(result, 4, 'Failed to get "write" lock')


def test_progress_tells_when_qemu_loads_and_when_pages_are_compared(
    qemu_files: dict[str, SavedGuest], boot: BootFolder
) -> None:
    saved = qemu_files["plain"]
    heard = Heard()
    verify_by_loading(
        saved.uri,
        boot.line_of(saved),
        quick=True,
        folder=str(boot.run_dir),
        observer=heard,
    )
    assert [name for name, _ in heard.phases] == ["load", "loaded RAM"]


def cleared(saved: SavedGuest, folder: Path, idstr: str, page: int) -> SavedGuest:
    """A copy that says of one page that it is zero."""
    copy = Path(shutil.copyfile(saved.path, folder / "copy"))
    (block,) = [block for block in report("inspect", copy)["blocks"] if block["idstr"] == idstr]
    with copy.open("r+b") as file:
        file.seek(block["bitmap_offset"] + page // 8)
        bits = file.read(1)[0]
        assert bits >> page % 8 & 1
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([bits & ~(1 << page % 8)]))
    return replace(saved, path=copy)


def test_firmware_that_qemu_keeps_where_the_file_has_zeros_is_a_difference(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    """QEMU builds ACPI tables before it loads anything."""
    name = "/rom@etc/acpi/tables"
    changed = cleared(qemu_files["plain"], tmp_path, name, 1)
    (tables,) = [block for block in report("inspect", changed.path)["blocks"] if block["idstr"] == name]
    found = loaded(changed, boot)
    assert found.code == 1
    place = f"block {name!r} page 1 at {tables['pages_offset'] + 4096:#x}"
    assert f"{place}: differs from the QEMU that loaded the file\n" in found.out
    assert "QEMU does not touch pages that are not in the file" in found.err
    found = loaded(changed, boot, "--json", "--quick")
    assert [(each["idstr"], each["first_page"], each["pages"]) for each in found.json["differences"]] == [(name, 1, 1)]


def test_a_page_of_main_memory_that_the_file_has_not_is_zero_in_qemu_too(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    changed = cleared(qemu_files["plain"], tmp_path, "m", 512)
    found = loaded(changed, boot, "--json")
    assert (found.code, found.json["ok"], found.json["stale_pages"]) == (0, True, 1)


def test_device_state_that_qemu_does_not_take_is_told_in_its_words(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    """No digest tells that a byte of QEMU's own file is wrong."""
    saved = qemu_files["plain"]
    changed = replace(saved, path=Path(shutil.copyfile(saved.path, tmp_path / "copy")))
    (timer,) = [each for each in report("inspect", changed.path)["devices"] if each["name"] == "timer"]
    with changed.path.open("r+b") as file:
        file.seek(timer["offset"] + 1 + 4 + 1 + len("timer") + 4)
        file.write((99).to_bytes(4, "big"))
    report("verify", changed.path)
    refused(loaded(changed, boot), 4, "unsupported version 99 for 'timer' v2")


@pytest.mark.parametrize("before", ["migrate-incoming", "human-monitor-command"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_leaves_no_qemu(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, before: str, signum: signal.Signals, code: int
) -> None:
    with HeldBoot(*argv_of(qemu_files["plain"], boot), before=before) as running:
        (qemu,) = boot.qemus()
        with ends(qemu, *children(running.pid)):
            running.send(signum)
        assert running.finish().code == code
    boot.assert_empty()


def test_what_does_not_fit_is_refused(qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path) -> None:
    plain = qemu_files["plain"]
    refused(loaded(plain, boot, line=boot.line(*plain.args, machine="pc")), 2, "the file has machine type")
    refused(call("verify", plain.path, "--load"), 2, "--load needs a QEMU command line after --\n", "verify --help")
    refused(
        loaded(plain, boot, "--ram", "m=x"),
        2,
        "--load cannot be combined with --ram: it compares all RAM of the QEMU that it starts\n",
        "",
    )
    refused(call("verify", plain.path, "--run-dir", "x"), 2, "--run-dir needs --load, and a QEMU command line", "")
    report("save", tmp_path / "ram.mr", "--guest", "dense,size=1MiB")
    ram = replace(plain, path=tmp_path / "ram.mr")
    refused(loaded(ram, boot), 2, "has no device state, so no guest can be started from it\n")
