"""Snapshots of a real QEMU: something done at a chosen moment of one, and what has to be as it was afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.faults import Moment, before, behind
from support.instants import Held
from support.leftovers import nothing_left, of_qemu, own
from support.qemu import QemuProcess
from support.qemu_saved import in_turn

import parallel_fixedram
from parallel_fixedram import Capturing, Gate, SaveReport, Writing
from parallel_fixedram.engine.capture.snapshot.snapshot import Snapshot
from parallel_fixedram.engine.capture.write_protect import WriteProtect
from parallel_fixedram.host.processes import forked
from parallel_fixedram.machines.qemu.machine import QemuMachine

SECONDS = 20.0

MOMENTS: dict[str, Moment] = {
    "protected": behind(WriteProtect, "rehearse"),
    "in the pause": behind(WriteProtect, "stopped"),
    "after cont": before(WriteProtect, "after"),
    "captured": before(Snapshot, "end"),
    "ready": behind(QemuMachine, "get_ready"),
    "device state": behind(QemuMachine, "device_state"),
}

Act = Callable[..., object]
When = Callable[..., None]


def at_moments(monkeypatch: pytest.MonkeyPatch) -> When:
    """``when(moment, act, ...)``: one act each time that a snapshot comes to that moment; gets what came to it."""

    def plan(name: str, *acts: Act) -> None:
        moment, left = MOMENTS[name], list(acts)
        real = getattr(moment.owner, moment.name)

        def watched(self: Any, *args: Any, **options: Any) -> Any:
            if not moment.behind and left:
                left.pop(0)(self)
            result = real(self, *args, **options)
            if moment.behind and left:
                left.pop(0)(self)
            return result

        monkeypatch.setattr(moment.owner, moment.name, watched)

    return plan


def process_of(capture: WriteProtect, name: str) -> int:
    return int(getattr(capture._snapshot._running, name).pid)


def killing(name: str, signum: int = signal.SIGKILL) -> Act:
    """Of a process of the snapshot."""

    def act(capture: WriteProtect) -> None:
        pid = process_of(capture, name)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signum)
        if signum == signal.SIGKILL:
            assert forked.has_ended(pidfd, SECONDS)
        os.close(pidfd)

    return act


@contextlib.contextmanager
def unharmed(guest: QemuProcess, status: str = "running", *, letters: bool = True) -> Iterator[None]:
    """Nobody and nothing is left, in QEMU neither, and the guest runs.

    QEMU has what it had when it has seen that the connection of who was killed is closed.
    """
    with nothing_left(own, partial(of_qemu, guest)):
        yield
    assert guest.status() == status
    if status == "running" and letters:
        ticks(guest)


def watched_mappings(guest: QemuProcess) -> int:
    return Path(f"/proc/{guest.pid}/smaps").read_text().count(" uw ")


def ticks(guest: QemuProcess) -> None:
    guest.take_serial()
    assert in_turn(guest.wait_serial("[A-Z]{3}")[0])


class Saved:
    """A save in this process, checked against a copy of all RAM that is taken in its pause."""

    def __init__(
        self, guest: QemuProcess, path: Path, mode: str = "snapshot", *, channels: int = 1, direct: str = "off"
    ) -> None:
        self.path = path
        with QemuMachine(os.fspath(guest.monitor_path)) as machine:
            self.held = Held(machine, guest)
            self.report: SaveReport = parallel_fixedram.save(
                self.held,
                os.fspath(path),
                gate=Gate(channels=channels, experimental_multifd=True),
                capture=Capturing(mode=mode, max_stall=SECONDS),
                writing=Writing(direct_io=direct),
            )

    @property
    def snapshot(self) -> Any:
        assert self.report.choice.capture == "snapshot", self.report.choice
        assert self.report.snapshot is not None
        return self.report.snapshot

    def is_right(self) -> bool:
        assert self.held.wrong_pages(self.path) == {}
        return True


def argv(guest: QemuProcess, path: Path, mode: str, *more: object) -> list[object]:
    return ["save", path, "--qmp", guest.monitor_path, "--capture", mode, "--disks", "none", *more]
