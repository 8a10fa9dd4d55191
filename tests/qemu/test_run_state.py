"""A guest that did not run is in the same run state afterwards, in a file of ours as in QEMU's own."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cli import done, run
from support.command import report
from support.qemu import QemuDied, QemuError, QemuProcess
from support.qemu_boot import BootFolder
from support.qemu_reader import read_stored
from support.qemu_saved import in_turn, migrate, save

from parallel_fixedram.experiments.boot_sector import disk_image

GLOBALSTATE = b"\x0bglobalstate\0\0\0\0\0\0\0\1"
"""Name, instance 0, version 1."""
BODY_BYTES = 4 + 100
RESET_STOPS = ("-no-reboot", "-action", "shutdown=pause")
ACPI_SLEEP = "o /h 0x604 0x2400"
"""What a guest writes to be suspended: PM1a_CNT of q35, where SeaBIOS puts it, SLP_EN and the type of S3."""


def reset(guest: QemuProcess) -> None:
    guest.qmp("system_reset")
    guest.wait_event("STOP")


def panic(guest: QemuProcess) -> None:
    guest.hmp("o /b 0x505 1")  # the port of pvpanic
    guest.wait_event("GUEST_PANICKED")


def bite(guest: QemuProcess) -> None:
    guest.hmp("o /b 0x443 0xf")  # the port of ib700: at once
    guest.wait_event("WATCHDOG")


def suspend(guest: QemuProcess) -> None:
    guest.hmp(ACPI_SLEEP)
    guest.wait_event("SUSPEND")


class Case(NamedTuple):
    """How a guest comes into a run state."""

    args: tuple[str, ...]
    brings: Callable[[QemuProcess], object]
    handed_over: str
    """In what state ``restore`` and ``clone`` hand it over."""
    paused: bool = False


CASES = {
    "paused": Case((), QemuProcess.stop, "running"),
    "prelaunch": Case((), lambda _: None, "running", paused=True),
    "shutdown": Case(RESET_STOPS, reset, "shutdown"),
    "guest-panicked": Case(("-device", "pvpanic", "-action", "panic=pause"), panic, "guest-panicked"),
    "watchdog": Case(("-device", "ib700", "-action", "watchdog=pause"), bite, "watchdog"),
    "suspended": Case((), suspend, "suspended"),
}


def globalstate(path: Path) -> bytes:
    """The body of the section in a file."""
    stored = read_stored(path)
    with path.open("rb") as file:
        file.seek(stored.ram_end)
        tail = file.read()
    return tail.split(GLOBALSTATE)[1][:BODY_BYTES]


def loaded(stock: QemuProcess, path: Path) -> str:
    """The run state of a guest that QEMU has loaded by itself."""
    stock.load(f"file:{path}")
    return stock.status()


@pytest.mark.parametrize("state", CASES)
def test_it_is_in_the_state_that_qemus_own_file_has(
    ticker: list[str], tmp_path: Path, boot: BootFolder, state: str
) -> None:
    case, ours, qemus = CASES[state], tmp_path / "ours", tmp_path / "qemus"
    args = (*ticker, *case.args)
    with QemuProcess(*args, paused=case.paused) as guest:
        if not case.paused:
            guest.wait_serial("C")
        case.brings(guest)
        assert guest.status() == state
        report("save", ours, "--qmp", guest.monitor_path)
        assert guest.status() == state
        migrate(guest, qemus)
    mine, theirs = globalstate(ours), globalstate(qemus)
    if state == "suspended":  # it was to be stopped before it was saved, and is remembered in both places
        assert mine[37] == 1
        mine = mine[:37] + theirs[37:38] + mine[38:]
    assert mine == theirs
    for path in (ours, qemus):
        with QemuProcess(*args, incoming=True) as stock:
            assert loaded(stock, path) == state
    clones = boot.start("clone", ours, "--count", "2", line=boot.line(*args, clones=2))
    assert [guest["status"] for guest in clones.report["guests"]] == [case.handed_over] * 2
    assert [guest.status() for guest in clones.guests] == [case.handed_over] * 2


@pytest.mark.parametrize("options", [("--paused",), ("--shared",)])
def test_a_guest_that_had_powered_off_is_restored_as_it_is(
    ticker: list[str], tmp_path: Path, boot: BootFolder, options: tuple[str, ...]
) -> None:
    path = tmp_path / "saved"
    with QemuProcess(*ticker, *RESET_STOPS) as guest:
        guest.wait_serial("C")
        reset(guest)
        save(guest, path)
    (restored,) = boot.start("restore", path, *options, line=boot.line(*ticker)).guests
    assert restored.status() == "shutdown"
    with restored.monitor() as monitor:
        with pytest.raises(QemuError, match="Resetting the Virtual Machine is required"):
            monitor.execute("cont", {}, 10)
        monitor.execute("system_reset", {}, 10)
        monitor.wait_event("RESET", 10)
        monitor.execute("cont", {}, 10)
    assert in_turn(restored.wait_serial("[A-Z]{3}")[0])


def test_a_guest_whose_disk_failed_waits_for_its_owner(qemu_binary: str, tmp_path: Path, boot: BootFolder) -> None:
    image, path = tmp_path / "image", tmp_path / "saved"
    image.write_bytes(disk_image())
    disk = {
        "driver": "raw",
        "node-name": "disk",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(image)},
            "inject-error": [{"event": "write_aio", "once": True}],
        },
    }
    device = ("-device", "virtio-blk-pci,drive=disk,werror=stop,bootindex=0")
    with QemuProcess("-blockdev", json.dumps(disk), *device) as guest:
        guest.wait_event("STOP")
        assert guest.status() == "io-error"
        save(guest, path)
    args = ("-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={image}", *device)
    (restored,) = boot.start("restore", path, line=boot.line(*args)).guests
    assert restored.status() == "io-error"
    restored.qmp("cont")  # writes again
    assert in_turn(restored.wait_serial("[A-Z]{3}")[0])


def test_a_guest_at_a_breakpoint_is_paused_where_qemus_own_file_ends_the_qemu_that_loads_it(
    ticker: list[str], tmp_path: Path
) -> None:
    ours, qemus, debugger = tmp_path / "ours", tmp_path / "qemus", tmp_path / "gdb"
    with QemuProcess(*ticker, "-gdb", f"unix:{debugger},server=on,wait=off") as guest:
        guest.wait_serial("C")
        with socket.socket(socket.AF_UNIX) as gdb:
            gdb.connect(os.fspath(debugger))
            guest.wait_event("STOP")
            gdb.sendall(b"+$s#73")  # one instruction
            guest.wait_event("RESUME")
            guest.wait_event("STOP")
            assert guest.status() == "debug"
            save(guest, ours)
            migrate(guest, qemus)
    with QemuProcess(*ticker, incoming=True) as stock:
        assert loaded(stock, ours) == "paused"
        stock.cont()
        assert in_turn(stock.wait_serial("[A-Z]{3}")[0])
    with QemuProcess(*ticker, incoming=True) as stock, pytest.raises(QemuDied, match="invalid runstate transition"):
        loaded(stock, qemus)


def test_a_machine_that_keeps_no_run_state_has_it_in_our_file(ticker: list[str], tmp_path: Path) -> None:
    args = (*ticker, "-global", "migration.store-global-state=off", *RESET_STOPS)
    with QemuProcess(*args) as guest:
        guest.wait_serial("C")
        save(guest, tmp_path / "running")
        reset(guest)
        save(guest, tmp_path / "off")
    for name, status in {"running": "running", "off": "shutdown"}.items():
        done(run("verify", tmp_path / name))
        with QemuProcess(*args, incoming=True) as stock:
            assert loaded(stock, tmp_path / name) == status
