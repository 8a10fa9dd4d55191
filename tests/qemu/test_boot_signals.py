"""Signals to the command while it starts guests: no QEMU, no folder, no file and no process of ours is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.cli import Running, refused
from support.qemu import require_qemu
from support.qemu_boot import BootFolder, HeldBoot, children, ends
from support.qemu_files import SavedGuest

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
WAYS = [("restore", "--shared"), ("clone", "--count", "2")]


def argv_of(way: tuple[str, ...], saved: SavedGuest, boot: BootFolder, program: Path | None = None) -> list[str]:
    verb, *options = way
    line = boot.line_of(saved, clones=2 if verb == "clone" else 0)
    if program:
        line[0] = str(program)
    return [verb, str(saved.path), *options, "--run-dir", str(boot.run_dir), "--", *line]


def send(running: Running, boot: BootFolder, signum: signal.Signals, code: int) -> None:
    """Send a signal to the command and wait for the end of everybody it has started."""
    qemus = boot.qemus()
    with ends(*qemus, *children(running.pid)):
        running.send(signum)
    result = running.finish()
    if signum == signal.SIGKILL:
        assert result.code == code
    else:
        refused(result, code, f"interrupted by {signum.name}\n", "")
    boot.assert_empty()


@pytest.mark.parametrize("before", ["qmp_capabilities", "migrate-incoming", "query-status"])
@pytest.mark.parametrize(("signum", "code"), SIGNALS[1:])
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_signal_leaves_nothing(
    plain: SavedGuest, boot: BootFolder, way: tuple[str, ...], signum: signal.Signals, code: int, before: str
) -> None:
    """Before QEMU has answered; before it loads; and when the first one has loaded."""
    with HeldBoot(*argv_of(way, plain, boot), before=before) as running:
        assert len(boot.qemus()) == (2 if way[0] == "clone" else 1)
        send(running, boot, signum, code)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T"


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_signal_while_qemu_starts_leaves_nothing(
    plain: SavedGuest, boot: BootFolder, tmp_path: Path, way: tuple[str, ...], signum: signal.Signals, code: int
) -> None:
    """As early as there is a process at all, which need not be QEMU yet."""
    program = tmp_path / "frozen-qemu"
    program.write_text(f'#!/bin/sh\nkill -STOP $$\nexec {require_qemu()} "$@"\n')
    program.chmod(0o755)
    with Running(*argv_of(way, plain, boot, program)) as running:
        running.until(lambda: any(map(is_stopped, boot.qemus())))
        running.freeze()
        send(running, boot, signum, code)


def test_files_for_shared_memory_are_gone_too(plain: SavedGuest, boot: BootFolder) -> None:
    ram = boot.path / "ram"
    way = ("restore", "--ram", f"m={ram}")
    with HeldBoot(*argv_of(way, plain, boot), before="cont") as running:
        assert [each.name for each in boot.path.glob("*ram*")] == [".ram.part"], "not filled, or not handed over yet"
        send(running, boot, signal.SIGTERM, 143)
    assert [*boot.path.glob("*ram*"), *boot.path.glob(".ram*")] == []


def test_one_clone_that_is_gone_already_does_not_save_the_other(plain: SavedGuest, boot: BootFolder) -> None:
    with HeldBoot(*argv_of(WAYS[1], plain, boot), before="migrate-incoming") as running:
        first, _ = (int((boot.run_dir / str(number) / "pid").read_text()) for number in range(2))
        with ends(first):
            os.kill(first, signal.SIGKILL)
        send(running, boot, signal.SIGKILL, -9)
