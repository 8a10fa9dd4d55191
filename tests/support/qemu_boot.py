"""BootFolder: QEMUs that the command starts. They live on without it, so whoever starts them here ends them here.

::

    test --- runs ---> command --- starts ---> QEMU      prints to FOLDER/run/N/log, by which it is found again
         --- QMP, a session for every question ------->  FOLDER/run/N/qmp
         --- serial (named pipes) -------------------->  FOLDER/N/serial

Nothing here sleeps, and no QEMU outlives its folder, however the test ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import shutil
import signal
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil
from support.cli import HeldRunning, Result, call, done, run
from support.qemu import TIMEOUT, Ram, require_qemu
from support.qemu_files import SavedGuest
from support.qemu_monitor import Monitor
from support.qemu_serial import Serial

MACHINE_ERROR = 4
DEFAULT = Ram()
NUMBER = "{n}"
"""What the command replaces by a clone's number."""


class Guest:
    """A QEMU that the command has started; closing ends it.

    Args:
        pid: its process.
        qmp_path: its QMP socket.
        serial: its serial line.
    """

    def __init__(self, pid: int, qmp_path: str, serial: Serial) -> None:
        self.pid = pid
        self.qmp_path = qmp_path
        self._serial = serial
        self._pidfd = os.pidfd_open(pid)

    def close(self) -> None:
        """Kill it and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        wait_end(self._pidfd)
        os.close(self._pidfd)

    def terminate(self) -> None:
        """Ask it to end, and wait for that."""
        os.kill(self.pid, signal.SIGTERM)
        wait_end(self._pidfd)

    def wait_serial(self, pattern: str, timeout: float = TIMEOUT) -> re.Match[str]:
        """Wait for ``pattern`` in what the guest prints after the last match."""
        return self._serial.wait(pattern, timeout, self._pidfd)

    def send_serial(self, line: str) -> None:
        """Type a line."""
        self._serial.send(line)

    def wait_ticks(self, md5: str, after: int = 0) -> int:
        """Wait for two ticks of the Linux guest, hold them against its known file; returns the first one's number.

        Args:
            after: a tick that was seen before the save, not the first: a guest that boots again begins at 1.
        """
        first, second = (self.wait_serial(r"tick (\d+) (\w+)\r") for _ in range(2))
        assert (first[2], second[2]) == (md5, md5)
        assert int(second[1]) == int(first[1]) + 1
        assert int(first[1]) >= after
        return int(first[1])

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """A session on the QMP socket, which takes one client at a time."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.qmp_path)
            monitor = Monitor(sock, self._pidfd)
            try:
                monitor.connect(TIMEOUT)
                yield monitor
            finally:
                monitor.close()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run one command."""
        with self.monitor() as monitor:
            return monitor.execute(command, arguments, TIMEOUT)

    def status(self) -> str:
        """Run state."""
        return str(self.qmp("query-status")["status"])


class Booted(NamedTuple):
    """What the command reported, and the guests it started."""

    report: dict[str, Any]
    guests: list[Guest]


class BootFolder:
    """A context manager around a folder for guests; at its end they are gone, and the folder too.

    Args:
        path: does not exist; short enough for sockets below it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_dir = path / "run"
        self._serials: dict[int, Serial] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.path.mkdir()
        self._stack.callback(shutil.rmtree, self.path)
        self._stack.callback(self._kill)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for log in self.run_dir.glob("*/log") if error else ():
            error.add_note(f"QEMU {log.parent.name} said: {log.read_text(errors='replace')}")
        self._stack.close()

    def line(
        self,
        *args: str,
        ram: Ram | None = DEFAULT,
        machine: str = "q35",
        clones: int = 0,
        program: str | Path | None = None,
    ) -> list[str]:
        """The command line of a guest that ``QemuProcess`` ran with the same arguments.

        Args:
            args: further arguments.
            ram: main memory, of any backend but a file; None if ``args`` set it up.
            machine: machine type and its properties.
            clones: how many guests it is for; 0 for one whose number is not replaced.
            program: instead of QEMU.
        """
        for number in range(max(clones, 1)):
            self._serial(number)
        main = ram is not None and ram.backend != "default"
        memory = ["-m", f"{ram.size}B"] if ram else []
        if ram and main:
            kind = {"private": "ram", "memfd": "memfd"}[ram.backend]
            memory += ["-object", f"memory-backend-{kind},id=m,size={ram.size}"]
        pipes = self.path / (NUMBER if clones else "0") / "serial"
        return [
            str(program or require_qemu()),
            *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"),
            *("-machine", f"{machine}{',memory-backend=m' if main else ''}"),
            *("-chardev", f"pipe,id=serial,path={pipes}", "-serial", "chardev:serial"),
            *memory,
            *args,
        ]

    def line_of(self, saved: SavedGuest, *more: str, clones: int = 0) -> list[str]:
        """The command line of a guest that QEMU saved."""
        return self.line(*saved.args, *more, ram=saved.ram, machine=saved.machine, clones=clones)

    def start(self, verb: str, file: object, *options: object, line: Sequence[str]) -> Booted:
        """Have the command start guests, and hold its report against what is there."""
        result = done(run(verb, str(file), *map(str, options), *self._options(), "--json", "--", *line))
        report = result.json
        folders = [self.run_dir / str(number) for number in range(len(report["guests"]))]
        assert [(each["qmp"], each["log"]) for each in report["guests"]] == [
            (str(folder / "qmp"), str(folder / "log")) for folder in folders
        ]
        assert sorted(self.run_dir.iterdir()) == sorted(folders)
        assert self.qemus() == sorted(each["pid"] for each in report["guests"])
        return Booted(report, [self.guest(number, each["pid"]) for number, each in enumerate(report["guests"])])

    def attempt(self, verb: str, file: object, *options: object, line: Sequence[str]) -> Result:
        """Run the command, which has to fail: no guest is left, and no folder of it.

        Of a QEMU with which something went wrong there is the log, and the command says so; it is removed.
        """
        result = call(verb, str(file), *map(str, options), *self._options(), "--", *line)
        if result.code == MACHINE_ERROR:
            self.take_logs(result)
        self.assert_empty()
        return result

    def take_logs(self, result: Result) -> str:
        """What a QEMU printed that failed, empty if it said nothing; nothing else is left of it, and now not that."""
        assert self.qemus() == []
        found = [path for path in self.run_dir.rglob("*") if not path.is_dir()]
        if not found:
            self.assert_empty()
            return ""
        (log,) = found
        assert (log.name, log.parent.parent) == ("log", self.run_dir)
        assert [stat.S_IMODE(path.stat().st_mode) for path in (log, log.parent, self.run_dir)] == [0o600, 0o700, 0o700]
        assert f"what QEMU printed is kept in '{log}'" in result.err
        text = log.read_text(errors="replace")
        shutil.rmtree(self.run_dir)
        return text

    def assert_empty(self) -> None:
        """No QEMU is left, and nothing in the folder but what was made here."""
        assert self.qemus() == []
        assert not self.run_dir.exists()

    def guest(self, number: int, pid: int) -> Guest:
        """A guest that was started by its number."""
        guest = Guest(pid, str(self.run_dir / str(number) / "qmp"), self._serial(number))
        self._stack.callback(guest.close)
        return guest

    def serial_text(self) -> str:
        """What guest 0 has printed so far."""
        return self._serial(0).take()

    def qemus(self) -> list[int]:
        """Processes that print to a log in this folder."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/fd/1").startswith(f"{self.path}{os.sep}"):
                    found.append(int(name))
        return sorted(found)

    def _options(self) -> list[str]:
        return ["--run-dir", str(self.run_dir)]

    def _serial(self, number: int) -> Serial:
        if number not in self._serials:
            folder = self.path / str(number)
            folder.mkdir()
            self._serials[number] = Serial(folder)
            self._stack.callback(self._serials[number].close)
        return self._serials[number]

    def _kill(self) -> None:
        for pid in self.qemus():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


_HOLD = """
import os, sys
from parallel_fixedram.cli import main
from parallel_fixedram.machines.qemu import monitor
for fd in ({ready}, {go}):
    os.set_inheritable(fd, False)  # no QEMU shall keep us waiting for a command that has ended
execute = monitor.Monitor.execute
def held(self, command, *args, **options):
    if command == {before!r}:
        os.write({ready}, b".")
        os.read({go}, 1)  # until the other end is closed
    return execute(self, command, *args, **options)
monitor.Monitor.execute = held
sys.exit(main.main())
"""


class HeldBoot(HeldRunning):
    """The command, held before it sends a QMP command.

    Args:
        argv: verb and arguments.
        before: which one; everything before it has been answered.
    """

    def __init__(self, *argv: str | Path, before: str) -> None:
        super().__init__(*argv, hold=_HOLD, values={"before": before})


@contextlib.contextmanager
def ends(*pids: int) -> Iterator[None]:
    """Wait, when the block is left, until these processes have ended."""
    fds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield
        for fd in fds:
            wait_end(fd)
    finally:
        for fd in fds:
            os.close(fd)


def wait_end(pidfd: int) -> None:
    """Wait until a process has ended."""

    assert select.select([pidfd], [], [], TIMEOUT)[0], "it does not end"


def children(pid: int) -> list[int]:
    """Processes that a process has started: QEMUs, guardian, workers."""
    return [child.pid for child in psutil.Process(pid).children()]


def sha256(path: Path) -> str:
    """Check sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
