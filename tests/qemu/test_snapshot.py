"""``save --capture snapshot`` of a running QEMU: the file is its RAM at one instant, and QEMU is left as it was."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
from support.cli import call, done, refused, unchanged, untouched
from support.examples import unless_thorough
from support.instants import Held
from support.qemu import Backend, QemuProcess, Ram
from support.qemu_linux import LinuxGuest
from support.qemu_saved import KNOWN_MIB, WAYS_TO_LOAD, in_turn, save, wait_tick
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram import Capturing, Gate, Writing
from parallel_fixedram.machines.qemu.machine import QemuMachine
from parallel_fixedram.machines.qemu.watch import VARIABLE

SNAPSHOT = ("--capture", "snapshot")
BACKENDS: tuple[Backend, ...] = ("default", "private", "memfd", "file")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def needed() -> None:
    require_userfaultfd()


def traces(guest: QemuProcess) -> tuple[dict[str, str], int]:
    """Descriptors of QEMU, and how many of its mappings are watched."""
    watched = Path(f"/proc/{guest.pid}/smaps").read_text().count(" uw ")
    return {each.name: os.readlink(each) for each in Path(f"/proc/{guest.pid}/fd").iterdir()}, watched


@pytest.mark.parametrize(
    ("backend", "direct"),
    unless_thorough(zip(BACKENDS, ("on", "off", "off", "on"), strict=True), product(BACKENDS, ("on", "off"))),
)
def test_every_page_is_what_it_was_at_the_instant(
    ticker: list[str], tmp_path: Path, backend: Backend, direct: str
) -> None:
    """Compared with a copy that is taken by other means than ours, while the guest is stopped."""
    path, channels = tmp_path / "saved", 2 if direct == "on" else 1
    with QemuProcess(*ticker, ram=Ram(backend=backend)) as guest:
        guest.wait_serial("C")
        with QemuMachine(os.fspath(guest.monitor_path)) as machine:
            before, held = traces(guest), Held(machine, guest)
            report = parallel_fixedram.save(
                held,
                os.fspath(path),
                gate=Gate(channels=channels, experimental_multifd=True),
                capture=Capturing(mode="snapshot"),
                writing=Writing(direct_io=direct),
            )
            assert traces(guest) == before
        assert held.wrong_pages(path) == {}
        guest.take_serial()
        assert in_turn(guest.wait_serial("[A-Z]{3}")[0])
    assert report.choice.capture == "snapshot"
    assert report.snapshot is not None
    assert report.snapshot.faults > 0, "nothing was written meanwhile, so this shows nothing"
    assert [each.while_running for each in report.rounds] == [True]


@pytest.mark.parametrize(
    ("turn", "backend"), unless_thorough([(0, "default")], enumerate(["default", "memfd", "file"]))
)
def test_a_linux_guest_goes_on_in_both(linux: LinuxGuest, tmp_path: Path, turn: int, backend: Backend) -> None:
    args, ram, path = linux.args(size_mib=KNOWN_MIB, tick=0.1), Ram(256 * MIB, backend), tmp_path / "saved"
    with QemuProcess(*args, ram=ram) as source:
        before = wait_tick(source)
        assert save(source, path, *SNAPSHOT)["choice"]["capture"] == "snapshot"
        source.take_serial()
        after = wait_tick(source)
        with QemuProcess(*args, ram=ram, incoming=True) as destination:
            destination.load(f"file:{path}", *[*WAYS_TO_LOAD.values()][turn])
            first = wait_tick(destination)
            assert before < first <= after + 1
            assert wait_tick(destination) == first + 1
            assert destination.complaints() == []
        wait_tick(source)


def test_a_guest_that_stands_still_is_read_as_it_stands(ticker: list[str], tmp_path: Path) -> None:
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("C")
        guest.stop()
        saved = save(guest, tmp_path / "saved", *SNAPSHOT)
        assert saved["choice"]["capture"] == "stopped"
        assert saved["snapshot"] is None
        assert any("stands still already" in why for why in saved["choice"]["why"])


def test_whoever_runs_it_may_forbid_it(ticker: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with QemuProcess(*ticker) as guest, untouched(tmp_path):
        guest.wait_serial("C")
        inspected = done(call("inspect", "--json", "--qmp", guest.monitor_path)).json
        assert (inspected["capture"], inspected["no_snapshot"]) == ("snapshot", "")
        monkeypatch.setenv(VARIABLE, "never")
        assert f"compare, because {VARIABLE}=never" in done(call("inspect", "--qmp", guest.monitor_path)).out
        result = call("save", tmp_path / "saved", "--qmp", guest.monitor_path, *SNAPSHOT)
        refused(result, 5, f"{VARIABLE}=never forbids asking QEMU's process for a userfaultfd\n")
        assert guest.status() == "running"


def test_memory_that_takes_no_protection_is_refused(ticker: list[str], tmp_path: Path) -> None:
    """A file on a disk's file system; the guest runs on, and no file is left."""
    memory, folder = f"memory-backend-file,id=m,size=64M,mem-path={tmp_path / 'ram'},share=on", tmp_path / "folder"
    folder.mkdir()
    args = (*ticker, "-m", "64M", "-object", memory, "-machine", "memory-backend=m")
    with QemuProcess(*args, ram=None) as guest, unchanged(folder):
        guest.wait_serial("C")
        result = call("save", folder / "saved", "--qmp", guest.monitor_path, *SNAPSHOT)
        refused(result, 5, "this memory cannot be write-protected\n")
        assert guest.status() == "running"
        assert traces(guest)[1] == 0
