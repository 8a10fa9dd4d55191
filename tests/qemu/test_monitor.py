"""The monitor against the real QEMU."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from support.fake_qmp import line
from support.qemu import QemuProcess

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor

SHORT = 0.2


class Interrupted(BaseException):
    """What the command's signal handlers raise."""


@pytest.fixture
def qemu(qemu_binary: str) -> Iterator[QemuProcess]:
    with QemuProcess() as qemu:
        yield qemu


@pytest.fixture
def monitor(qemu: QemuProcess) -> Iterator[Monitor]:
    pidfd = os.pidfd_open(qemu.pid)
    try:
        with Monitor(str(qemu.monitor_path), pidfd=pidfd) as monitor:
            yield monitor
    finally:
        os.close(pidfd)


class TestMonitor:
    def test_commands_are_carried_out(self, qemu: QemuProcess, monitor: Monitor) -> None:
        version = qemu.qmp("query-version")["qemu"]
        assert monitor.version == (version["major"], version["minor"], version["micro"])
        assert monitor.peer_pid == qemu.pid
        with monitor.listen("STOP") as events:
            monitor.execute("stop")
            assert events.wait()["event"] == "STOP"
        assert monitor.execute("query-status") == qemu.qmp("query-status")
        assert "paused" in monitor.hmp("info status")

    def test_it_refuses_in_its_own_words(self, monitor: Monitor) -> None:
        with pytest.raises(MachineError, match="QEMU refuses 'stpo': The command stpo has not been found"):
            monitor.execute("stpo")
        with pytest.raises(MachineError, match="QEMU refuses 'qom-get': Parameter 'property' is missing"):
            monitor.execute("qom-get", {"path": "/"})

    def test_a_device_state_comes_through_a_descriptor(self, monitor: Monitor) -> None:
        memory = os.memfd_create("state")
        writable = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY)  # QEMU takes none that it could also read
        monitor.execute("stop")
        with FdSet(monitor) as fdset:
            fdset.add(writable)
            [found] = monitor.execute("query-fdsets")
            assert (f"/dev/fdset/{found['fdset-id']}", found["fds"][0]["opaque"]) == (fdset.path, "parallel-fixedram")
            monitor.execute("xen-save-devices-state", {"filename": fdset.path, "live": False})
        assert monitor.execute("query-fdsets") == []
        assert os.pread(memory, 4, 0) == b"QEVM"
        os.close(writable)
        os.close(memory)

    def test_a_second_client_hears_that_the_first_is_there(self, qemu: QemuProcess, monitor: Monitor) -> None:
        with pytest.raises(MachineError, match=r"no greeting within 0\.2 s") as caught:
            Monitor(str(qemu.monitor_path), timeout=SHORT)
        assert caught.value.hint.startswith("another client is connected to this socket")
        monitor.close()
        with Monitor(str(qemu.monitor_path)) as second:
            assert second.execute("query-status")["running"]

    def test_a_human_monitor_is_not_taken_for_one(self, tmp_path: Path) -> None:
        path = tmp_path / "human"
        said = "no greeting: what came instead is not JSON: 'QEMU .* monitor - type 'help' for more information'"
        with (
            QemuProcess("-monitor", f"unix:{path},server=on,wait=off"),
            pytest.raises(MachineError, match=said),
        ):
            Monitor(str(path))

    def test_one_that_is_pretty_is_told_by_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "pretty"
        chardev = ("-chardev", f"socket,id=pretty,path={path},server=on,wait=off")
        with (
            QemuProcess(*chardev, "-qmp-pretty", "chardev:pretty"),
            pytest.raises(MachineError, match="several lines, as QEMU does with pretty=on"),
        ):
            Monitor(str(path))

    def test_killed_in_the_middle_of_a_command(self, qemu: QemuProcess, monitor: Monitor) -> None:
        os.kill(qemu.pid, signal.SIGSTOP)  # so that the command is under way when the end comes
        with pytest.raises(MachineError, match="did not answer 'query-status' within"):
            monitor.execute("query-status", timeout=SHORT)
        qemu.kill()
        with pytest.raises(MachineError, match=r"did not answer 'stop': its process has ended$"):
            monitor.execute("stop")

    def test_an_interrupted_command_can_be_followed_by_another(self, qemu: QemuProcess, monitor: Monitor) -> None:
        def interrupt(_signum: int, _frame: FrameType | None) -> None:
            os.kill(qemu.pid, signal.SIGCONT)
            raise Interrupted

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            os.kill(qemu.pid, signal.SIGSTOP)  # it cannot answer before the signal
            signal.setitimer(signal.ITIMER_REAL, SHORT)
            with pytest.raises(Interrupted):
                monitor.execute("stop")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        monitor.execute("cont")
        assert qemu.status() == "running"

    def test_half_a_command_and_0xff_do_no_harm_to_the_next(self, qemu: QemuProcess) -> None:
        """What a guardian does with the session of a program that was killed in the middle of writing a command."""
        with contextlib.closing(Monitor(str(qemu.monitor_path))) as monitor:
            monitor.execute("stop")
            sock = socket.socket(fileno=os.dup(monitor.sock.fileno()))
        with sock, sock.makefile("rb") as answers:
            sock.settimeout(30)
            sock.sendall(b'{"execute": "sto')
            sock.sendall(b"\xff\n" + line({"execute": "cont", "id": "guardian"}))
            assert b"JSON parse error" in answers.readline()
            assert b"RESUME" in answers.readline()
            assert b'"guardian"' in answers.readline()
        assert qemu.status() == "running"
