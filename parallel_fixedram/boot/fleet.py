"""Fleet: QEMUs that are started together, load the same stream, and are handed over all or none.

All of them are started before we wait for the first; our own slow imports happen meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from parallel_fixedram.boot import incoming
from parallel_fixedram.boot.clone_identity import no_room_hint
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.last_words import end_all
from parallel_fixedram.boot.launch import Launch
from parallel_fixedram.boot.overlays import PlannedOverlays
from parallel_fixedram.boot.run_folder import FleetFolder
from parallel_fixedram.boot.taken import taken_hint
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.reports.boot import GuestReport
from parallel_fixedram.format.migration_file import MigrationFile
from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import signals
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.host.processes.identity import require_proc
from parallel_fixedram.machines.qemu import discovery
from parallel_fixedram.machines.qemu.fdset import FdSet

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

START_SECONDS = 60.0
"""How long QEMU may take to answer after its start; its end is noticed immediately."""


class Fleet:
    """Context manager around QEMUs; all are killed, and their folders removed, unless ``let_go`` is called.

    If something goes wrong with a QEMU, its log stays, alone in its folder; the error's hint says where.

    Args:
        commands: program and arguments of each; they must wait for their guest (``-incoming defer``).
        folder: where each gets a folder of its own, named by its number; must not exist. None for a new one.
        descriptors: open files that each QEMU inherits under the same numbers.
        disks: overlays to make before.

    Attributes:
        monitors: a session with each, once connected.
        start_seconds: from the first start until all had answered.
        load_seconds: from then until all had loaded.

    Raises:
        RequestError: the folder exists, or a program does not.
        HostError: a process cannot be started, an overlay cannot be made, or there is no /proc.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        folder: str | None = None,
        *,
        descriptors: Collection[int] = (),
        disks: PlannedOverlays | None = None,
    ) -> None:
        self._commands = commands
        self._folder = FleetFolder(folder)
        self._descriptors = descriptors
        self._disks = disks or PlannedOverlays()
        self._stack = ExitStack()
        self._launches: list[Launch] = []
        self.monitors: list[Monitor] = []
        self._kept = False
        self.start_seconds = self.load_seconds = 0.0

    def __enter__(self) -> Self:
        require_proc()  # needed to find the process behind a monitor, and to end it if it is not our child
        self._started = self._ready = time.perf_counter()
        with ExitStack() as stack:
            with signals.held():
                self._folder.make()
                stack.callback(self._leave_folder)
            # before the first start, so that at any moment somebody will end the QEMUs if we die
            self._guardian = stack.enter_context(Guardian(lambda: _end_all(self._folder, self._disks.paths())))
            self._guardian.arm()
            files = self._disks.contents(len(self._commands), self._folder.path)
            for number, (command, own) in enumerate(zip(self._commands, files, strict=True)):
                launch = Launch(command, self._folder.of(number).path, descriptors=self._descriptors, files=own)
                self._launches.append(stack.enter_context(launch))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def connect(self, file: MigrationFile) -> None:
        """Wait until every QEMU answers, find out which process it is, and check its machine against the file.

        Raises:
            RequestError: a machine does not fit the file.
            MachineError: a QEMU did not start.
        """
        # imported while QEMU starts
        from parallel_fixedram.machines.qemu.monitor import Monitor

        for launch in self._launches:
            with self._explained(launch):
                # no pidfd yet: until we know QEMU's process, the end of the one that we started means nothing
                monitor = self._stack.enter_context(Monitor(launch.socket_path, timeout=START_SECONDS))
                self.monitors.append(monitor)
                launch.found(_process_behind(monitor, launch.pid))
                monitor.pidfd = launch.pidfd
                incoming.check_machine(
                    monitor, file.configuration.machine, [saved.block for saved in file.blocks], file.target
                )
        self._ready = time.perf_counter()
        self.start_seconds = self._ready - self._started

    def load(self, source: IncomingStream) -> None:
        """Have every QEMU load the stream; no guest runs yet.

        Raises:
            MachineError: a QEMU cannot load it.
        """
        for launch, monitor in zip(self._launches, self.monitors, strict=True):
            with self._explained(launch):
                incoming.load(monitor, source)
        self.load_seconds = time.perf_counter() - self._ready

    def go_on(self, *, run: bool) -> tuple[GuestReport, ...]:
        """Let the guests run if ``run``.

        Raises:
            MachineError: a guest cannot run.
        """
        reports = []
        for number, (launch, monitor) in enumerate(zip(self._launches, self.monitors, strict=True)):
            with self._explained(launch):
                status = incoming.go_on(monitor, run=run)
            reports.append(_report_of(launch, f"{self._folder.name}/{number}", status, self._started))
        self.load_seconds = time.perf_counter() - self._ready
        return tuple(reports)

    @property
    def pids(self) -> list[int]:
        """The process of each QEMU, once connected; not that of a wrapper."""
        return [launch.pid for launch in self._launches]

    def let_go(self, file: str) -> None:
        """Let the guests live on by themselves; the verb ``guests`` finds them.

        Args:
            file: what they were started from.

        Raises:
            HostError: a record cannot be written; no guest was let go.
        """
        with signals.held():
            for launch in self._launches:  # first the records, by which guests are found when nobody ends them
                launch.write_record(os.path.abspath(file))
            self._guardian.disarm()
            self._kept = True
            for monitor in self.monitors:
                monitor.pidfd = None
            for launch in self._launches:
                launch.let_go()

    def _leave_folder(self) -> None:
        if not self._kept:
            self._folder.remove()  # a log may stay
        self._folder.let_go()

    @contextlib.contextmanager
    def _explained(self, launch: Launch) -> Iterator[None]:
        """Explain errors with what QEMU itself has printed."""
        try:
            yield
        except MachineError as error:
            told = launch.explained(error)
            several = len(self._launches) > 1
            taken = self._disks.hint(told.message) or taken_hint(told.message, clones=several)
            hint = "; ".join(filter(None, [taken, no_room_hint(told.message), told.hint]))
            number = f"guest {self._launches.index(launch)}: " if several else ""
            raise MachineError(f"{number}{told.message}", hint=hint) from error


def _report_of(launch: Launch, name: str, status: str, started: float) -> GuestReport:
    """The report about a guest with this name, which has this run state from now on."""
    return GuestReport(
        name=name,
        pid=launch.pid,
        qmp=launch.socket_path,
        log=launch.log_path,
        status=status,
        disks=tuple(launch.files),
        seconds=time.perf_counter() - started,
    )


def _end_all(folder: FleetFolder, files: Iterable[str]) -> None:
    """Runs in the guardian."""
    end_all(folder.path)
    shutil.rmtree(folder.path, ignore_errors=True)
    for path in files:
        with contextlib.suppress(OSError):
            os.unlink(path)
    folder.forget()


def _process_behind(monitor: Monitor, likely: int) -> int:
    """The process that answers, found by a descriptor that we send it, because what we started may be a wrapper.

    Raises:
        MachineError: it cannot be found, or we may not examine it.
    """
    try:
        fd = os.memfd_create("parallel-fixedram", os.MFD_CLOEXEC)
    except OSError as error:
        raise HostError.from_os("cannot get memory", error) from error
    with linux.closing(fd), FdSet(monitor) as fdset:
        fdset.add(fd)
        return discovery.find_process(monitor, fd, likely=likely)
