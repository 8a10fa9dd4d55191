"""QemuGuest: a real QEMU under TCG whose boot sector fills its RAM.

::

    runner ---- QMP -----------------> QEMU <---- second QMP socket ---- a save of ours (one client at a time)
           <--- serial: RAM is full --

It has no device but a floppy drive and a serial line, and is killed when the block is left, or by a guardian when this
process is.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import time
from types import TracebackType
from typing import Any, Self

from parallel_fixedram.boot.launch import Launch
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.experiments import boot_sector, tools
from parallel_fixedram.experiments.parameters import QemuSpec
from parallel_fixedram.host.memory.process_maps import refusal
from parallel_fixedram.host.processes import signals
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.verbs.temporary import temporary_folder

SHARED_BLOCK = "m"
"""Name of the RAMBlock of main memory behind a memory backend."""

_BOOT_SECONDS = 30.0
_FILL_RATE = 20 << 20
"""Bytes a second that a guest fills on the slowest host we care about."""
_MEMFD = "/memfd:memory-backend-memfd"


class QemuGuest:
    """A context manager; inside, the guest has filled its RAM.

    Args:
        spec: its RAM.
        seed: of the data that it fills its RAM with.
        incoming: wait for a migration instead of booting.

    Attributes:
        spec: the same.
        pid: process id of the QEMU.
        monitor: its first QMP socket, connected.
        qmp: path of the second one.

    Raises:
        tools.Missing: no QEMU with mapped-ram.
        MachineError: it does not start, or its guest does not fill its RAM.
    """

    def __init__(self, spec: QemuSpec, *, seed: int = 1, incoming: bool = False) -> None:
        self.spec = spec
        self._seed = seed
        self._incoming = incoming
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            if not self._incoming:
                self._wait_full()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def stands_still(self) -> bool:
        """Whether no page changes although the guest runs: it sleeps, and nothing will wake it."""
        return not self.spec.dirty_rate

    @property
    def shared_ram(self) -> dict[str, str]:
        """Main memory as a file, by block name; empty where it is private."""
        if not self.spec.is_shared:
            return {}
        folder = f"/proc/{self.pid}/fd"
        try:
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(path := os.path.join(folder, name)).startswith(_MEMFD):
                        return {SHARED_BLOCK: path}
        except OSError as error:
            raise refusal(self.pid, error, f"cannot look at the files of process {self.pid}") from error
        raise MachineError(f"QEMU {self.pid} has no shared memory")

    def execute(self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Have a QMP command carried out.

        Raises:
            MachineError: QEMU refuses, or ends.
        """
        return self.monitor.execute(command, arguments, timeout=timeout)

    def _start(self, stack: contextlib.ExitStack) -> None:
        program = tools.find_qemu()
        with signals.held():
            place = stack.enter_context(temporary_folder(None))
        self._image = os.path.join(place, "image")
        with open(self._image, "wb") as file:
            file.write(self.spec.boot_image(self._seed))
        self.qmp = os.path.join(place, "second")
        ours, theirs = socket.socketpair()
        self._serial = stack.enter_context(ours)
        with theirs:
            launch = stack.enter_context(
                Launch(
                    [
                        *(program, *self._arguments(f"socket,id=serial,fd={theirs.fileno()}")),
                        *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
                        *(["-incoming", "defer"] if self._incoming else []),
                    ],
                    os.path.join(place, "qemu"),
                    descriptors=[theirs.fileno()],
                )
            )
        self.pid, self._launch = launch.pid, launch
        guardian = stack.enter_context(Guardian(lambda: _kill(launch.pidfd, place), [launch.pidfd]))
        guardian.arm()
        stack.callback(guardian.disarm)
        try:
            self.monitor = stack.enter_context(Monitor(launch.socket_path, pidfd=launch.pidfd))
        except MachineError as error:
            raise MachineError(launch.explanation() or error.message) from error

    def command(self, *more: str) -> list[str]:
        """A command line for a file of this guest, which works while this guest lives; ``more`` is appended."""
        return [tools.find_qemu(), *self._arguments("null,id=serial"), *more]

    def _arguments(self, serial: str) -> list[str]:
        machine, memory = "pc", ["-m", f"{self.spec.size >> 20}M"]
        if self.spec.is_shared:
            machine += f",memory-backend={SHARED_BLOCK}"
            huge = ",hugetlb=on" if self.spec.ram == "huge" else ""
            memory += ["-object", f"memory-backend-memfd,id={SHARED_BLOCK},size={self.spec.size},share=on{huge}"]
        return [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", machine, "-accel", "tcg"),
            *memory,
            *("-chardev", serial, "-serial", "chardev:serial"),
            *("-drive", f"file={self._image},format=raw,if=floppy,readonly=on"),
        ]

    def _wait_full(self) -> None:
        """Wait for the letter."""
        seconds = _BOOT_SECONDS + self.spec.data_bytes / _FILL_RATE
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._serial, select.POLLIN)
        poll.register(self._launch.pidfd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            if self._serial.fileno() in ready:
                said = self._serial.recv(4096)
                if boot_sector.FILLED.encode() in said:
                    return
                if not said:
                    break
            elif ready:
                break
        else:
            raise MachineError(f"the guest has not filled its RAM within {seconds:.0f} s")
        raise MachineError(self._launch.explanation() or f"QEMU {self.pid} ended while its guest filled its RAM")


def _kill(pidfd: int, place: str) -> None:
    """Runs in the guardian."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    shutil.rmtree(place, ignore_errors=True)
