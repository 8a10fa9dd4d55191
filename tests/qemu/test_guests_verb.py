"""``guests``: QEMUs that ``restore`` and ``clone`` have started are found, and ended by the line that was shown."""

from __future__ import annotations

import re
import shlex

from support.cli import call, done, run
from support.qemu_boot import BootFolder, ends
from support.qemu_files import SavedGuest


def test_clones_are_listed_and_ended_by_the_line_that_was_shown(
    qemu_files: dict[str, SavedGuest], boot: BootFolder
) -> None:
    saved = qemu_files["plain"]
    line = boot.line_of(saved, clones=2)
    started = done(run("clone", saved.path, "--count", "2", "--run-dir", boot.run_dir, "--", *line)).out
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", started)]
    guests = [boot.guest(number, pid) for number, pid in enumerate(pids)]
    listed = [each for each in done(call("guests", "--json")).json["guests"] if each["pid"] in pids]
    assert [(each["pid"], each["qmp"]) for each in listed] == [(guest.pid, guest.qmp_path) for guest in guests]
    assert {each["file"] for each in listed} == {str(saved.path)}
    (shown,) = re.findall(r"^to end them: parallel-fixedram (.*); guests lists", started, re.M)
    with guests[1].monitor(), ends(*pids):  # the monitor of one is busy
        ended = done(call(*shlex.split(shown))).out.splitlines()
    assert [each.rpartition(" ")[2] for each in ended] == ["quit", "SIGTERM"]
    boot.assert_empty()


def test_a_guest_that_powers_off_leaves_nothing_once_somebody_has_looked(
    qemu_files: dict[str, SavedGuest], boot: BootFolder
) -> None:
    saved = qemu_files["plain"]
    _, (guest,) = boot.start("restore", saved.path, line=boot.line_of(saved))
    with ends(guest.pid):
        guest.qmp("quit")
    (gone,) = [each for each in done(call("guests", "--json")).json["ended"] if each["pid"] == guest.pid]
    assert gone["file"] == str(saved.path)
    boot.assert_empty()
