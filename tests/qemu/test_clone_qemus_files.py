"""QEMU's own mapped-ram files are cloned without a change, or made ready for it in place, and stay what they are."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.cli import Running, refused, run, without_override
from support.command import report
from support.qemu_boot import BootFolder, children, ends, sha256
from support.qemu_files import SavedGuest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLONES = ("--count", "2")


def copied(saved: SavedGuest, folder: Path) -> SavedGuest:
    """A file that may be changed."""
    return replace(saved, path=Path(shutil.copyfile(saved.path, folder / "copy")))


def assert_clones_run(boot: BootFolder, saved: SavedGuest, *options: str) -> None:
    """Two clones run, and the file stays as it is; they are ended."""
    with BootFolder(boot.path / "clones") as folder:
        _, guests = folder.start("clone", saved.uri, *CLONES, *options, line=folder.line_of(saved, clones=2))
        before = sha256(saved.path)
        for guest in guests:
            assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS
        assert sha256(saved.path) == before


@pytest.mark.parametrize("name", ["offset-123", "no-vmdesc", "all-pages", "numa"])
def test_the_file_of_a_stopped_guest_is_cloned_as_it_is(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, name: str
) -> None:
    saved = qemu_files[name]
    before = sha256(saved.path)
    assert_clones_run(boot, saved)
    assert sha256(saved.path) == before


@pytest.mark.parametrize("name", ["plain", "no-vmdesc", "numa"])
def test_a_clone_stream_is_added_behind_all_that_qemu_wrote(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path, name: str
) -> None:
    saved = copied(qemu_files[name], tmp_path)
    end = report("inspect", saved.uri)["stream_end"]
    before = saved.path.read_bytes()[:end]
    assert_clones_run(boot, saved, "--add-clone-stream")
    assert saved.path.read_bytes()[:end] == before
    checked = report("verify", saved.uri)
    assert (checked["ok"], checked["digests"], checked["stale_pages"]) == (True, True, 0)
    assert report("inspect", saved.uri)["clone_offset"] >= end
    assert report("diff", saved.uri, qemu_files[name].uri)["equal"]

    refused(
        boot.attempt("clone", saved.uri, "--add-clone-stream", line=boot.line_of(saved)),
        2,
        f"'{saved.path}' already has a trailer\n",
    )
    assert_clones_run(boot, saved)
    for capabilities, parameters in (
        (("mapped-ram",), {}),
        (("mapped-ram", "multifd"), {"multifd-channels": 2, "direct-io": True}),
    ):
        with saved.destination() as guest:
            guest.load(saved.uri, capabilities, parameters)
            for block, contents in saved.blocks.items():
                assert guest.read_block(block) == contents.read_bytes(), block


def test_stale_pages_are_refused_and_punched_on_request(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    live = copied(qemu_files["live"], tmp_path)
    before = sha256(live.path)
    line = boot.line_of(live)
    said = "pages are zero, first block 'm' page "
    refused(boot.attempt("clone", live.path, line=line), 2, said, "clone --punch turns them into holes, in place")
    refused(boot.attempt("clone", live.path, "--print", line=line), 2, said, "--punch")
    refused(boot.attempt("clone", live.path, "--add-clone-stream", line=line), 2, "has stale bytes", "--punch")
    assert sha256(live.path) == before
    assert report("verify", live.path)["stale_pages"] > 0
    assert_clones_run(boot, live, "--punch")
    assert report("verify", live.path)["stale_pages"] == 0
    assert report("diff", live.path, qemu_files["live"].path)["equal"]
    assert_clones_run(boot, live, "--punch", "--add-clone-stream")
    assert report("verify", live.path)["digests"]


def test_a_live_file_restored_into_shared_memory_needs_no_punch(
    qemu_files: dict[str, SavedGuest], boot: BootFolder
) -> None:
    live = qemu_files["live"]
    before = sha256(live.path)
    _, (guest,) = boot.start("restore", live.path, "--shared", line=boot.line_of(live))
    assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS
    assert sha256(live.path) == before


@pytest.mark.parametrize(("name", "option"), [("live", "--punch"), ("plain", "--add-clone-stream")])
def test_a_file_that_may_not_be_written_is_an_error_of_the_host(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path, name: str, option: str
) -> None:
    saved = copied(qemu_files[name], tmp_path)
    saved.path.chmod(0o444)
    before = sha256(saved.path)
    argv = ("clone", saved.path, option, "--run-dir", boot.run_dir, "--", *boot.line_of(saved))
    result = run(*argv, preexec_fn=without_override)
    refused(result, 5, f"cannot write to '{saved.path}': permission denied\n")
    boot.assert_empty()
    assert sha256(saved.path) == before


@pytest.mark.parametrize("option", ["--punch", "--add-clone-stream"])
def test_a_file_that_fits_no_guest_is_not_changed(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path, option: str
) -> None:
    saved = copied(qemu_files["live"], tmp_path)
    before = sha256(saved.path)
    line = boot.line(*saved.args, ram=None)
    refused(boot.attempt("clone", saved.path, option, line=line), 2, "block 'm' of the file is not a memory backend of")
    assert sha256(saved.path) == before


_HELD_DIGEST = """
import os, sys
from parallel_fixedram.engine.pages import digest
from parallel_fixedram.cli import main
def held(self, shard):
    os.write({ready}, b".")
    os.read({go}, 1)  # until it is killed
digest.DigestJob.run = held
sys.exit(main.main())
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_while_a_clone_stream_is_added_leaves_the_file_what_it_was(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    """But for its length after SIGKILL: zeros behind the end, which nobody minds."""
    saved = copied(qemu_files["plain"], tmp_path)
    before = saved.path.read_bytes()
    (ready, theirs), (go, ours) = os.pipe(), os.pipe()
    argv = ("clone", saved.path, "--add-clone-stream", "--run-dir", boot.run_dir, "--", *boot.line_of(saved))
    python = ("-c", _HELD_DIGEST.format(ready=theirs, go=go))
    with Running(*argv, python=python, pass_fds=(theirs, go)) as running:
        assert os.read(ready, 1) == b"."
        with ends(*children(running.pid)):
            running.send(signum)
        assert running.finish().code == code
    for fd in (ready, theirs, go, ours):
        os.close(fd)
    boot.assert_empty()
    assert saved.path.read_bytes()[: len(before)] == before
    assert report("verify", saved.path)["ok"]
    assert (saved.path.stat().st_size > len(before)) == (signum == signal.SIGKILL)
    assert_clones_run(boot, saved, "--add-clone-stream")
    assert report("verify", saved.path)["digests"]
