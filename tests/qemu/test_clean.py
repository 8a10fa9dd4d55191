"""``clean`` beside a save that makes overlays for a QEMU: what QEMU or the save holds stays, what nobody holds goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import call, done
from support.disks_of_guests import ManyDisks, many_disks
from support.qemu import QemuProcess
from support.qemu_boot import BootFolder, ends
from support.qemu_commands import Commands
from support.qemu_files import SavedGuest

from parallel_fixedram import clean

MAKING = ("blockdev-add", "blockdev-create", "transaction")

KILLED = """
import os, signal, sys
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.cli.main import main
late = sys.argv[1] == "after"
execute = Monitor.execute
def watched(self, name, *args, **options):
    if name == "blockdev-add" and not late:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = execute(self, name, *args, **options)
    if name == "blockdev-add":
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
Monitor.execute = watched
main(sys.argv[2:])
"""


@pytest.fixture
def guest(disks: ManyDisks, ticker: list[str]) -> Iterator[QemuProcess]:
    with many_disks(disks, ticker) as guest:
        yield guest


def argv(guest: QemuProcess, path: Path) -> list[str]:
    return ["save", str(path), "--qmp", str(guest.monitor_path), "--disks", "overlay"]


def test_at_no_step_of_a_save_does_it_take_an_overlay_away(
    guest: QemuProcess, disks: ManyDisks, tmp_path: Path, commands: Commands
) -> None:
    seen = []

    def look(name: str, _: object) -> None:
        if name in MAKING:
            found = clean(str(disks.folder), remove=True).found
            assert all(each.held and not each.removed for each in found), (name, found)
            seen.append((name, len(found)))

    commands.before = look
    done(call(*argv(guest, tmp_path / "saved")))
    assert seen[0] == ("blockdev-add", 1)
    assert seen[-1] == ("transaction", len(disks.written))
    done(call("clean", disks.folder, "--remove"))  # the guest goes on with them


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_overlay_of_a_killed_save_goes_unless_qemu_has_it(
    guest: QemuProcess, disks: ManyDisks, tmp_path: Path, when: str
) -> None:
    before = sorted(os.listdir(disks.folder))
    command = [sys.executable, "-c", KILLED, when, *argv(guest, tmp_path / "saved")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (found,) = clean(str(disks.folder), remove=True).found
    assert (found.kind, found.held, found.removed) == ("overlay", when == "after", when == "before")
    if found.held:
        assert f"process {guest.pid} (" in found.why_not
        done(call("disks", "commit", "--qmp", guest.monitor_path))
    assert sorted(os.listdir(disks.folder)) == before


def test_a_guest_that_runs_holds_its_run_folder_and_one_that_was_killed_leaves_it_to_clean(
    qemu_files: dict[str, SavedGuest], boot: BootFolder
) -> None:
    saved = qemu_files["plain"]
    _, (guest,) = boot.start("restore", saved.path, line=boot.line_of(saved))
    folder = os.path.dirname(boot.run_dir)

    def states() -> list[tuple[str, bool, bool]]:
        found = clean(folder, remove=True).found
        return [(each.kind, each.held, each.removed) for each in found if each.path == str(boot.run_dir)]

    with ends(guest.pid):
        assert states() == [("run-folder", True, False)]
        os.kill(guest.pid, signal.SIGKILL)
    assert states() == [("run-folder", False, True)]
    boot.assert_empty()
