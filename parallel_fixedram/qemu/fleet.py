"""Fleet: QEMUs that are started together, load the same stream, and are handed over together or not at all.

All of them start before the first is waited for; our own slow imports happen meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from parallel_fixedram.core.errors import HostError, MachineError, RequestError
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.report import GuestReport
from parallel_fixedram.host import signals
from parallel_fixedram.host.guardian import Guardian
from parallel_fixedram.qemu import incoming
from parallel_fixedram.qemu.incoming import Source
from parallel_fixedram.qemu.launch import Launch

if TYPE_CHECKING:
    from parallel_fixedram.qemu.monitor import Monitor

START_SECONDS = 60.0
"""How long QEMU may take to answer after its start; its end is noticed at once."""


class Fleet:
    """Context manager around QEMUs; all are killed, and their folders removed, unless ``let_go`` is called.

    Args:
        commands: program and arguments of each; they have to wait for their guest (``-incoming defer``).
        folder: where each gets a folder of its own, named by its number; must not exist. None for a new one.
        descriptors: open files that each QEMU shall have under the same numbers.

    Attributes:
        start_seconds: from the first start until all had answered.
        load_seconds: from then until all had loaded.

    Raises:
        RequestError: the folder exists, or a program does not.
        HostError: a process cannot be started.
    """

    def __init__(
        self, commands: Sequence[Sequence[str]], folder: str | None = None, *, descriptors: Collection[int] = ()
    ) -> None:
        self._commands = commands
        self._folder = folder
        self._descriptors = descriptors
        self._stack = ExitStack()
        self._launches: list[Launch] = []
        self._kept = False
        self.start_seconds = self.load_seconds = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        with ExitStack() as stack:
            folder = self._make_folder(stack)
            # before the first start, so that there is no moment in which nobody would end a QEMU
            self._guardian = stack.enter_context(Guardian(lambda: _end_all(folder)))
            self._guardian.arm()
            for number, command in enumerate(self._commands):
                launch = Launch(command, os.path.join(folder, str(number)), descriptors=self._descriptors)
                self._launches.append(stack.enter_context(launch))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def load(
        self, machine: str, blocks: Sequence[RAMBlock], source: Source, *, run: bool, target: str = ""
    ) -> tuple[GuestReport, ...]:
        """Hold every machine against the file, have it load, and let the guest run if ``run``.

        Raises:
            RequestError: a machine does not fit the file.
            MachineError: a QEMU does not start, cannot load, or has a guest that cannot run.
        """
        # imported while QEMU starts
        from parallel_fixedram.qemu.monitor import Monitor

        with ExitStack() as stack:
            monitors: list[Monitor] = []
            for launch in self._launches:
                with _explained(launch):
                    monitor = Monitor(launch.socket_path, timeout=START_SECONDS, pidfd=launch.pidfd)
                    monitors.append(stack.enter_context(monitor))
                    incoming.check_machine(monitor, machine, blocks, target)
            ready = time.perf_counter()
            self.start_seconds = ready - self._started
            reports = []
            for launch, monitor in zip(self._launches, monitors, strict=True):
                with _explained(launch):
                    incoming.load(monitor, source)
                    status = incoming.go_on(monitor, run=run)
                reports.append(GuestReport(pid=launch.pid, qmp=launch.socket_path, log=launch.log_path, status=status))
            self.load_seconds = time.perf_counter() - ready
        return tuple(reports)

    def let_go(self) -> None:
        """The guests are on their own from now on."""
        with signals.held():
            self._guardian.disarm()
            self._kept = True
            for launch in self._launches:
                launch.let_go()

    def _make_folder(self, stack: ExitStack) -> str:
        above = os.environ.get("XDG_RUNTIME_DIR", "")
        above = above if os.path.isdir(above) else tempfile.gettempdir()
        try:
            if self._folder is None:
                made = tempfile.mkdtemp(prefix="parallel-fixedram-", dir=above)
            else:
                made = os.path.abspath(self._folder)
                os.mkdir(made, 0o700)
        except FileExistsError as error:
            raise RequestError(f"{self._folder!r} exists") from error
        except OSError as error:
            raise HostError.from_os(f"cannot make {self._folder or f'a folder in {above}'!r}", error) from error
        stack.callback(self._remove, made)
        return made

    def _remove(self, folder: str) -> None:
        if not self._kept:
            shutil.rmtree(folder, ignore_errors=True)


def _end_all(folder: str) -> None:
    """Runs in the guardian: end whoever prints to a log in the folder, also a QEMU that had only just been started."""
    logs = os.path.join(os.path.realpath(folder), "")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it is gone, or somebody else's
            pidfd = os.pidfd_open(int(pid))  # before looking, so that it cannot come to mean another process
            try:
                if os.readlink(f"/proc/{pid}/fd/1").startswith(logs):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _explained(launch: Launch) -> Iterator[None]:
    """What goes wrong with a QEMU that ended is told in its own words."""
    try:
        yield
    except MachineError as error:
        if better := launch.explanation():
            raise MachineError(better) from error
        if "has ended" not in error.message and launch.has_ended():
            raise MachineError(f"{error.message}; {launch.program!r} has ended and said nothing") from error
        raise
