"""A file of ours that a tool has refreshed, skipping zeros: old bytes lie where its pages are zero.

Whoever honours the bitmap is right all the same: QEMU's own load, and our workers. A clone maps the page arrays, and
would see them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.cli import call, refused
from support.command import report
from support.qemu import QemuProcess, boot_from
from support.qemu_boot import BootFolder, HeldBoot, sha256
from support.qemu_files import SavedGuest

from parallel_fixedram.experiments.boot_sector import boot_image

MIB = 1 << 20
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def saved_with(folder: Path, end: int) -> SavedGuest:
    """A file of ours of a guest that has dirtied so much."""
    image, path = folder / "image", folder / f"{end}.mr"
    image.write_bytes(boot_image(end=end))
    saved = SavedGuest(path=path, blocks={}, args=tuple(boot_from(image)))
    with QemuProcess(*saved.args, ram=saved.ram) as guest:
        guest.wait_serial("C")
        report("save", path, "--qmp", guest.monitor_path)
    return saved


@pytest.fixture(scope="module")
def small(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    return saved_with(tmp_path_factory.mktemp("small"), 8 * MIB)


@pytest.fixture(scope="module")
def refreshed(small: SavedGuest, tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    """A larger guest's file, refreshed to that of the small one."""
    path = saved_with(tmp_path_factory.mktemp("large"), 24 * MIB).path
    subprocess.run(
        ["dd", f"if={small.path}", f"of={path}", "bs=64k", "conv=sparse,notrunc"], check=True, capture_output=True
    )
    os.truncate(path, small.path.stat().st_size)
    return replace(small, path=path)


def test_a_clone_of_a_refreshed_file_is_refused_with_block_page_and_place(
    small: SavedGuest, refreshed: SavedGuest, boot: BootFolder, tmp_path: Path
) -> None:
    found = report("verify", refreshed.path, code=1)
    assert found["stale_pages"] > 1000
    first = next(each for each in found["differences"] if each["idstr"])
    assert "is zero by the bitmap" in first["what"]
    line = boot.line_of(refreshed)
    said = (
        f"pages are zero, first block 'm' page {first['first_page']} at {first['offset']:#x}: a tool that skips zeros"
    )
    for more in ([], ["--count", "2"], ["--print"]):
        result = boot.attempt("clone", refreshed.path, *more, line=line)
        refused(result, 2, said, "clone --punch turns them into holes, in place")
    refused(boot.attempt("clone", refreshed.path, "--verify", line=line), 1, "the trailer does not match its digest")

    copy = replace(refreshed, path=Path(shutil.copyfile(refreshed.path, tmp_path / "copy")))
    boot.start("clone", copy.path, "--punch", "--verify", line=line)
    assert report("verify", copy.path)["stale_pages"] == 0
    assert report("diff", copy.path, small.path)["equal"]


def test_qemus_own_load_and_our_workers_honour_the_bitmap(
    small: SavedGuest, refreshed: SavedGuest, boot: BootFolder, tmp_path: Path
) -> None:
    result = call("verify", refreshed.path, "--quick", "--load", "--run-dir", boot.run_dir, "--", *boot.line_of(small))
    assert result.code == 0, result
    with QemuProcess(*refreshed.args, ram=refreshed.ram, incoming=True, paused=True) as guest:
        guest.load(refreshed.uri, ("mapped-ram", "multifd"), {"multifd-channels": 2})
        report("save", tmp_path / "multifd.mr", "--qmp", guest.monitor_path)
    _, (shared,) = boot.start("restore", refreshed.path, "--shared", "--paused", line=boot.line_of(refreshed))
    report("save", tmp_path / "shared.mr", "--qmp", shared.qmp_path)
    for name in ("multifd.mr", "shared.mr"):
        assert report("diff", tmp_path / name, small.path)["equal"]


def test_zeros_that_take_space_are_not_stale(small: SavedGuest, boot: BootFolder, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    subprocess.run(["cp", "--sparse=never", small.path, dense], check=True)
    assert dense.stat().st_blocks > 2 * small.path.stat().st_blocks
    started, (guest,) = boot.start("clone", dense, "--verify", line=boot.line_of(small))
    assert started["verified"]
    assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS


def test_a_clone_holds_everything_against_its_digest_on_request(
    small: SavedGuest, boot: BootFolder, tmp_path: Path
) -> None:
    bad = Path(shutil.copyfile(small.path, tmp_path / "bad"))
    (main,) = [block for block in report("inspect", bad)["blocks"] if block["idstr"] == "m"]
    at = main["pages_offset"] + 2 * MIB
    with bad.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
    line = boot.line_of(small)
    refused(boot.attempt("clone", bad, "--verify", line=line), 1, "block 'm' page 512 at", "no guest was started")
    refused(
        boot.attempt("clone", bad, "--verify", "--print", line=line),
        2,
        "cannot be combined with --verify",
        "verify checks",
    )


def test_a_file_without_digests_cannot_be_held_against_any(qemu_files: dict[str, SavedGuest], boot: BootFolder) -> None:
    plain = qemu_files["plain"]
    result = boot.attempt("clone", plain.path, "--verify", line=boot.line_of(plain))
    refused(result, 2, "has no digests to check\n")


@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
def test_a_file_that_changes_before_the_clones_run_is_refused(
    small: SavedGuest, boot: BootFolder, tmp_path: Path, how: str
) -> None:
    path = Path(shutil.copyfile(small.path, tmp_path / "copy"))
    argv = ("clone", str(path), "--run-dir", str(boot.run_dir), "--", *boot.line_of(small))
    with HeldBoot(*argv, before="migrate-incoming") as running:
        match how:
            case "written":
                with path.open("r+b") as file:
                    file.write(b"Q")  # as it was
            case "replaced":
                shutil.copyfile(small.path, tmp_path / "other")
                (tmp_path / "other").rename(path)
            case "gone":
                path.unlink()
        running.release()
        refused(running.finish(), 2, f"'{path}' was changed or replaced while its clones were being started\n")
    boot.assert_empty()


def test_a_clone_keeps_its_file_when_another_one_gets_the_name(
    small: SavedGuest, boot: BootFolder, tmp_path: Path
) -> None:
    path = Path(shutil.copyfile(small.path, tmp_path / "copy"))
    _, (guest,) = boot.start("clone", path, "--paused", line=boot.line_of(small))
    (tmp_path / "other").write_bytes(os.urandom(MIB))
    (tmp_path / "other").rename(path)
    report("save", tmp_path / "again", "--qmp", guest.qmp_path)
    assert report("diff", small.path, tmp_path / "again")["equal"]
    assert sha256(path) != sha256(small.path)
