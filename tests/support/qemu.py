"""QemuProcess: a real QEMU, started, watched and cleaned up after.

::

    test --- QMP (socket pair) ------> QEMU <-- QMP (monitor_path) --- the program under test
         --- serial (named pipes) ---> QEMU --- RAM: private, memfd, or a shared file in /dev/shm

Nothing here sleeps: every wait is for a descriptor, has a time-out, and ends when QEMU does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from support.qemu_monitor import Monitor, QemuDied, QemuError
from support.qemu_serial import Serial
from support.qemu_tools import Missing, find_qemu, missing, require_qemu, require_tool

__all__ = [
    "Block",
    "Missing",
    "QemuDied",
    "QemuError",
    "QemuProcess",
    "Ram",
    "boot_from",
    "find_qemu",
    "missing",
    "require_qemu",
    "require_tool",
]

TIMEOUT = 60.0
MAPPED_RAM = ("mapped-ram",)
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


Backend = Literal["default", "private", "memfd", "file"]


@dataclass(frozen=True)
class Ram:
    """Main memory; its RAMBlock is called ``m``, whatever holds it (but ``pc.ram`` with ``default``)."""

    size: int = 64 << 20
    """Bytes."""
    backend: Backend = "private"
    """``default`` is a plain ``-m``; ``file`` is a named file in /dev/shm. memfd and file are shared."""


SMALL = Ram()


@dataclass(frozen=True)
class Block:
    """One line of ``info ramblock``; bytes."""

    name: str
    page_size: int
    used: int
    total: int
    hva: int


def boot_from(image: Path) -> list[str]:
    """Arguments to boot from an image; any number of guests can share it."""
    return ["-drive", f"file={image},format=raw,if=floppy,readonly=on"]


class QemuProcess:
    """A QEMU under TCG without any device that is not asked for; a context manager.

    Args:
        args: further arguments, such as ``*boot_from(image)``.
        ram: main memory; None if ``args`` set it up.
        machine: machine type and its properties.
        target: what it emulates.
        program: the QEMU, if not the first one in PATH.
        incoming: wait for ``load`` instead of booting.
        paused: do not start the processors (``-S``).
        wrapper: a command that runs QEMU, such as ``["strace", "-f", ...]``.
        descriptors: what it inherits under the same numbers.
    """

    def __init__(
        self,
        *args: str,
        ram: Ram | None = SMALL,
        machine: str = "q35",
        target: str = "x86_64",
        program: str = "",
        incoming: bool = False,
        paused: bool = False,
        wrapper: Iterable[str] = (),
        descriptors: Iterable[int] = (),
    ) -> None:
        self.ram = ram
        self._descriptors = list(descriptors)
        self._machine = machine
        self._target = target
        self._program = program
        self._args = [*args, *(["-incoming", "defer"] if incoming else []), *(["-S"] if paused else [])]
        self._wrapper = list(wrapper)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:  # whatever happens below, what was made until then is removed
            self._start(stack)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (said := self.stderr()):
            error.add_note(f"QEMU said: {said}")
        self._cleanup.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qemu-"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.monitor_path = self.folder / "qmp"
        """A second QMP socket, for the program under test."""
        self._serial = Serial(self.folder)
        stack.callback(self._serial.close)
        memory = self._memory(stack)
        ours, theirs = socket.socketpair()
        with theirs, open(self.folder / "stderr", "wb") as stderr:
            self._process = subprocess.Popen(
                [
                    *self._wrapper,
                    self._program or require_qemu(self._target),
                    *self._base(theirs.fileno()),
                    *memory,
                    *self._args,
                ],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[theirs.fileno(), *self._descriptors],
                cwd=self.folder,
                start_new_session=True,  # so that a wrapper and QEMU can be killed together
                # Not even a killed test run leaves guests behind.
                preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        stack.callback(self.kill)
        self._pidfd = os.pidfd_open(self._process.pid)
        stack.callback(os.close, self._pidfd)
        self._monitor = Monitor(ours, self._pidfd)
        stack.callback(self._monitor.close)
        try:
            self._monitor.connect(TIMEOUT)
        except QemuDied as error:
            self._process.wait(TIMEOUT)
            raise QemuDied(f"QEMU does not start: {self.stderr() or error}") from None

    def _base(self, monitor_fd: int) -> list[str]:
        memory = ",memory-backend=m" if self.ram and self.ram.backend != "default" else ""
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"),
            *("-pidfile", str(self.folder / "pid")),
            *("-machine", "mem-merge=off"),  # whether this host merges pages is not for other tests to find out
            *("-machine", f"{self._machine}{memory}"),
            *("-chardev", f"socket,id=monitor,fd={monitor_fd}", "-qmp", "chardev:monitor"),
            *("-qmp", f"unix:{self.monitor_path},server=on,wait=off"),
            *("-chardev", f"pipe,id=serial,path={self._serial.path}", "-serial", "chardev:serial"),
        ]

    def _memory(self, stack: contextlib.ExitStack) -> list[str]:
        if self.ram is None:
            return []
        size = ["-m", f"{self.ram.size}B"]
        if self.ram.backend == "default":
            return size
        backend = f",id=m,size={self.ram.size}"
        match self.ram.backend:
            case "private":
                return [*size, "-object", f"memory-backend-ram{backend}"]
            case "memfd":
                return [*size, "-object", f"memory-backend-memfd{backend},share=on"]
        shared = Path(tempfile.mkdtemp(prefix="qemu-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, shared, ignore_errors=True)
        self._ram_file = shared / "ram"
        return [*size, "-object", f"memory-backend-file{backend},mem-path={self._ram_file},share=on"]

    @property
    def pid(self) -> int:
        """QEMU's own, with a wrapper too."""
        return int((self.folder / "pid").read_text())

    @property
    def ram_path(self) -> Path:
        """Main memory as a file; only of a shared backend."""
        if self.ram and self.ram.backend == "file":
            return self._ram_file
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            if os.readlink(link).startswith("/memfd:memory-backend-memfd"):
                return link
        raise LookupError("main memory is not shared")

    def stderr(self) -> str:
        """What QEMU printed, on standard output too."""
        with contextlib.suppress(OSError):
            return (self.folder / "stderr").read_text(errors="replace").strip()
        return ""

    def complaints(self) -> list[str]:
        """What QEMU printed, but for warnings: those come and go with versions."""
        return [line for line in self.stderr().splitlines() if ": warning: " not in f": {line}"]

    def kill(self) -> None:
        """End the process without a chance to say goodbye, and wait for it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT)

    def wait_exit(self, timeout: float = TIMEOUT) -> int:
        """Wait for the process to end by itself; returns its exit status."""
        return self._process.wait(timeout)

    # --- serial line

    def wait_serial(self, pattern: str, timeout: float = TIMEOUT) -> re.Match[str]:
        """Wait for ``pattern`` in what the guest prints after the last match.

        Lines come in pieces: a pattern that is about a whole line ends with ``\\r``.
        """
        return self._serial.wait(pattern, timeout, self._pidfd)

    def take_serial(self) -> str:
        """What the guest printed after the last match, without waiting; the next wait starts behind it."""
        return self._serial.take()

    def send_serial(self, line: str) -> None:
        """Type a line."""
        self._serial.send(line)

    # --- monitor

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command; ``_`` in argument names stands for QMP's ``-``.

        Raises:
            QemuError: QEMU refuses, in its own words.
        """
        return self.qmp_raw(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def qmp_raw(self, command: str, arguments: Mapping[str, Any], timeout: float = TIMEOUT) -> Any:
        """Run a command with the argument names as they are."""
        return self._monitor.execute(command, dict(arguments), timeout)

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor."""
        return str(self.qmp_raw("human-monitor-command", {"command-line": line}))

    def wait_event(self, name: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Wait for an event; older ones of other names are forgotten."""
        return self._monitor.wait_event(name, timeout)

    def take_events(self) -> list[str]:
        """Names of the events that have come since they were last taken or waited for."""
        return self._monitor.take_events()

    def stop(self) -> None:
        self.qmp("stop")

    def cont(self) -> None:
        self.qmp("cont")

    def status(self) -> str:
        """Run state: ``running``, ``paused``, ``inmigrate``, ``postmigrate`` ..."""
        return str(self.qmp("query-status")["status"])

    def ramblocks(self) -> list[Block]:
        """Every RAMBlock, in QEMU's order."""
        lines = re.findall(
            r"^\s*(\S+)\s+(\d+) ([KMG])iB\s+0x\w+ 0x(\w+) 0x(\w+) 0x(\w+)", self.hmp("info ramblock"), re.M
        )
        return [
            Block(name, int(size) << {"K": 10, "M": 20, "G": 30}[unit], int(used, 16), int(total, 16), int(hva, 16))
            for name, size, unit, used, total, hva in lines
        ]

    def read_block(self, name: str = "m") -> bytes:
        """The contents of a RAMBlock, whatever holds it (untouched pages of shared memory get allocated)."""
        block = next(block for block in self.ramblocks() if block.name == name)
        with open(f"/proc/{self.pid}/mem", "rb") as memory:
            memory.seek(block.hva)
            return memory.read(block.used)

    # --- migration

    def migrate(
        self,
        uri: str,
        capabilities: Iterable[str] = MAPPED_RAM,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> dict[str, Any]:
        """Save the guest with exactly these capabilities and no limit of bandwidth; returns the last ``query-migrate``.

        Raises:
            QemuError: the migration is refused or fails, in QEMU's own words.
        """
        return self._monitor.migration("migrate", uri, capabilities, parameters or {}, timeout)

    def load(
        self,
        uri: str,
        capabilities: Iterable[str] = MAPPED_RAM,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> dict[str, Any]:
        """Load a guest into a process made with ``incoming=True``; otherwise like ``migrate``.

        Raises:
            QemuError: as above; QEMU also ends when a load fails, and then it is QemuDied with what it printed.
        """
        try:
            return self._monitor.migration("migrate-incoming", uri, capabilities, parameters or {}, timeout)
        except QemuDied:
            self._process.wait(timeout)
            raise QemuDied(self.stderr() or f"exit status {self._process.returncode}") from None
