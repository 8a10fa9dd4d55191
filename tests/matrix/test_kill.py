"""The guardian and the pause, without any QEMU: whoever ends, and however, the machine goes on."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
from support.fake_qmp import FakeQmp, FdSets, refuses
from support.leftovers import children

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.engine.capture import pause
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.host.processes import guardian
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.machines.qemu.device_state import DeviceState
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.ram_only import RamOnly

SECONDS = 30.0


class Interrupted(BaseException):
    """What the command's signal handlers raise."""


class Bell:
    """Hears that a guardian has acted, and that it has ended."""

    def __init__(self) -> None:
        self._ear, self.mouth = socket.socketpair()
        self._ear.settimeout(SECONDS)

    def ring(self) -> None:
        os.write(self.mouth.fileno(), b"!")

    def heard(self) -> bytes:
        """What was said until nobody is left who could say more."""
        self.mouth.close()
        said = b""
        while data := self._ear.recv(16):
            said += data
        return said

    def close(self) -> None:
        self._ear.close()
        self.mouth.close()


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    yield bell
    bell.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestGuardian:
    @pytest.mark.parametrize("armed", [True, False])
    @pytest.mark.parametrize("signum", [0, signal.SIGKILL, signal.SIGTERM])
    def test_it_acts_when_we_end_and_it_is_armed(self, bell: Bell, armed: bool, signum: int) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                with Guardian(bell.ring, [bell.mouth.fileno()]) as guardian:
                    guardian.arm()
                    if not armed:
                        guardian.disarm()
                    if signum:
                        os.kill(os.getpid(), signum)
                        signal.pause()
                    os._exit(0)
            finally:
                os._exit(1)
        assert bell.heard() == b"!" * armed
        os.waitpid(pid, 0)

    @pytest.mark.parametrize("armed", [True, False])
    def test_it_acts_when_it_is_let_go_and_armed(self, bell: Bell, armed: bool) -> None:
        before = descriptors()
        with Guardian(bell.ring, [bell.mouth.fileno()]) as watching:
            if armed:
                watching.arm()
            watching.let_go()
            watching.let_go()
        assert descriptors() == before
        assert bell.heard() == b"!" * armed
        assert children() == set()

    def test_one_that_is_closed_does_nothing_however_it_was_told(self, bell: Bell) -> None:
        before = descriptors()
        with Guardian(bell.ring, [bell.mouth.fileno()]) as watching:
            watching.arm()
            watching.close()
            watching.let_go()
        assert descriptors() == before
        assert bell.heard() == b""

    def test_one_that_takes_long_is_not_waited_for_and_reaped_later(
        self, bell: Bell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(guardian, "_LET_GO_SECONDS", 0.0)
        go, hold = os.pipe()

        def act() -> None:
            os.read(go, 1)
            bell.ring()

        slow = Guardian(act, [bell.mouth.fileno(), go])
        with slow:
            slow.arm()
            pidfd = os.pidfd_open(slow._pid)
            slow.let_go()
            assert not select.select([pidfd], [], [], 0)[0]
        os.write(hold, b"!")
        assert select.select([pidfd], [], [], SECONDS)[0]
        with Guardian(bell.ring):
            pass
        assert children() == set()
        assert bell.heard() == b"!"
        for fd in (pidfd, go, hold):
            os.close(fd)

    def test_signals_for_us_do_not_end_it(self, bell: Bell) -> None:
        watching = Guardian(bell.ring, [bell.mouth.fileno()])
        with watching:
            watching.arm()
            pidfd = os.pidfd_open(watching._pid)
            all_of_them = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
            mask = sum(1 << (signum - 1) for signum in all_of_them)
            while int(_status(watching._pid, "SigIgn"), 16) & mask != mask:
                pass
            for signum in all_of_them:
                signal.pidfd_send_signal(pidfd, signum)
            os.close(pidfd)
            watching.let_go()
        assert bell.heard() == b"!"


def _status(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{name}:"))


class Standing(RamOnly):
    """A machine that remembers whether it stands still."""

    name = "pc"
    stands = False

    def holds(self, path: str) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.stands

    def pause(self) -> bool:
        self.stands = True
        return True

    def resume(self) -> None:
        self.stands = False

    def guest_blocks(self) -> list[GuestBlock]:
        return []

    def dirty_source(self) -> None:
        return None

    def address_space(self) -> NoReturn:
        raise MachineError("nobody runs it")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("call", range(5))
def test_a_signal_at_any_look_at_the_clock_of_a_pause_leaves_no_machine_standing(
    monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The first is before the stop, the second behind it, the others are at the end."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise Interrupted

    def look() -> float:
        if next(calls) == call:
            signal.raise_signal(signal.SIGUSR1)
        return time.monotonic()

    calls = iter(range(100))
    machine = Standing()
    before = signal.signal(signal.SIGUSR1, interrupt)
    monkeypatch.setattr(pause.time, "perf_counter", look)
    try:
        if call < 4:
            with pytest.raises(Interrupted), Pause(machine):
                pass
        else:
            with Pause(machine) as stopped:
                assert machine.stands
                assert stopped.was_running
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not machine.stands


@pytest.mark.parametrize("error", [None, MachineError("it went wrong before")])
def test_the_memory_for_a_device_state_is_given_back_though_qemu_does_not_let_go_of_it(
    tmp_path: Path, error: Exception | None
) -> None:
    answers = {**FdSets().answers, "remove-fd": refuses("no")}
    with FakeQmp(tmp_path / "qmp", answers) as server, Monitor(str(server.path)) as monitor:
        before = descriptors()

        def use() -> None:
            with DeviceState(monitor) as state:
                assert state.fd >= 0
                if error:
                    raise error

        if error:
            with pytest.raises(MachineError, match="it went wrong before"):
                use()
        else:
            use()
        assert descriptors() == before
        assert server.commands == ["add-fd", "remove-fd"]
