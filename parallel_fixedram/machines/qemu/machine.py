"""QemuMachine: a running QEMU as a Machine, reached through its monitor and, for its RAM, from outside.

::

    us -- QMP: stop, device state, cont --> QEMU
       <-- /proc/PID: RAM, mapped or copied --
    guardian -- cont, on the same connection, if we die in between --> QEMU

Nothing of QEMU is changed but its run state, and that is given back: no migration is started, no capability or
parameter set. We are not alone with it: what others do to the guest meanwhile is found out before it goes on
(``instant.py``), and whether it is still made of the same blocks and devices, right after that.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.protocols import AddressSpace, GuestBlock
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.core.reports.inspect import InspectQemuReport, QemuBlockReport
from parallel_fixedram.core.targets import check_target
from parallel_fixedram.format.globalstate import RUNNING
from parallel_fixedram.host.memory.process_memory import ProcessMemory, open_process_memory
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.machines.qemu import discovery
from parallel_fixedram.machines.qemu.device_state import DeviceState
from parallel_fixedram.machines.qemu.discovery import BUSY, Makeup, QemuBlock
from parallel_fixedram.machines.qemu.disks import sync_disks
from parallel_fixedram.machines.qemu.instant import HARMLESS, Held, look_back
from parallel_fixedram.machines.qemu.monitor import TIMEOUT_SECONDS, Events, Monitor
from parallel_fixedram.machines.qemu.target import check_settings, read_target
from parallel_fixedram.machines.qemu.trials import Setting
from parallel_fixedram.machines.qemu.unreachable import refuse_unreachable_memory
from parallel_fixedram.machines.qemu.watch import address_space, setting

GREETING_SECONDS = 5.0
"""How long a running QEMU may take to greet: nothing but its main loop has to turn for it."""

_CONTINUE = b'\xff\n{"execute": "cont", "id": "guardian"}\n'
"""0xff makes QEMU forget a command of which we may have sent only a half (QEMU docs/interop/qmp-spec.rst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachedBlock:
    """A RAMBlock and how its memory is reached."""

    block: QemuBlock
    memory: ProcessMemory


class QemuMachine:
    """A Machine; a context manager. Opening it touches nothing.

    Args:
        socket_path: QMP socket that no other client is attached to.
        pid: process id of the QEMU, where it cannot be found by itself.
        timeout: how long QEMU may take for an answer, seconds; None for the monitor's own time.

    Attributes:
        name: machine type.
        target: architecture of the guest.
        pid: process id of the QEMU.
        blocks: its RAMBlocks and how each is reached.

    Raises:
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; says which right is missing.
    """

    def __init__(self, socket_path: str, *, pid: int | None = None, timeout: float | None = None) -> None:
        seconds = TIMEOUT_SECONDS if timeout is None else timeout
        self._runs = self._stopped = self._held = False
        self._ran_as = RUNNING
        self._events: Events | None = None
        with ExitStack() as stack:
            self._monitor = stack.enter_context(
                Monitor(socket_path, timeout=seconds, greeting_timeout=min(seconds, GREETING_SECONDS))
            )
            self._refuse_what_cannot_be_saved()
            self.name = discovery.machine_type(self._monitor)
            self.target = read_target(self._monitor)
            check_target(self.target, self.name)
            check_settings(self._monitor)
            self._state = stack.enter_context(DeviceState(self._monitor))
            self.pid = discovery.find_process(self._monitor, self._state.fd, pid)
            stack.enter_context(self._watched())
            self._memory = stack.enter_context(ExitStack())
            self._reach_memory(discovery.makeup(self._monitor))
            self._guardian = Guardian(self._go_on, [self._monitor.sock.fileno()])
            self._guardian.__enter__()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """All RAMBlocks, in QEMU's order (Machine.guest_blocks)."""
        return [
            GuestBlock(
                block=each.block.ramblock(),
                source=each.memory.source,
                main=each.block.main,
            )
            for each in self.blocks
        ]

    def holds(self, path: str) -> bool:
        """No: its memory may be a file, but one that is replaced stays what it is (Machine.holds)."""
        return False

    def is_running(self) -> bool:
        """Ask QEMU (Machine.is_running)."""
        return self._status() in discovery.RUNNING

    def get_ready(self) -> None:
        """Ask whether the guest runs, and listen to what happens to it (Machine.get_ready)."""
        if self._events is None:
            self._events = self._stack.enter_context(self._monitor.listen(ignored=HARMLESS))
        status = self._status()
        self._runs = status in discovery.RUNNING
        self._ran_as = status if self._runs else RUNNING
        self._events.clear()

    def sync_disks(self) -> Sequence[str]:
        """Sync the files behind its disks (Machine.sync_disks); not where the guest stands still already."""
        return sync_disks(self._monitor, self.pid) if self._runs else ()

    def pause(self) -> bool:
        """Stop the guest; from then on the guardian watches (Machine.pause).

        Whether this stopped anything QEMU tells by an event: somebody else may have started or stopped it since
        ``get_ready``. To a guest that stands still, ``stop`` does nothing (QEMU system/cpus.c, do_vm_stop).
        """
        assert self._events is not None, "get_ready() comes first"
        self._events.clear()  # a stop that was reported already is somebody else's
        self._held = True
        if self._runs:
            self._guardian.arm()
            self._stopped = True
        self._monitor.execute("stop")
        self._stopped = any(event["event"] == "STOP" for event in self._events.take()[0])
        if self._stopped:
            self._guardian.arm()
        else:
            self._guardian.disarm()
        return self._stopped

    def resume(self) -> str | None:
        """Let the guest go on if ``pause`` stopped it, and nobody else did anything about that (Machine.resume).

        Raises:
            MachineError: QEMU refuses, does not answer, or has ended: then what was read was not its memory. Or the
                guest has come to its end, and stays as it is.
        """
        if not self._held:
            return None
        try:
            held = self._look_back()
        except MachineError:
            self._go_on_if(self._stopped)
            raise
        self._go_on_if(held.ours)
        if held.over:
            raise MachineError(f"{self._monitor.name!r}: {held.torn} while it was saved, and was left as it is")
        return held.torn or None

    def look_again(self) -> bool:
        """Ask whether RAMBlocks and devices are those of ``guest_blocks`` (Machine.look_again)."""
        found = discovery.makeup(self._monitor)
        if found == self._makeup:
            return False
        self._refuse_what_cannot_be_saved()
        self._memory.close()
        self._reach_memory(found)
        return True

    def device_state(self) -> bytes:
        """What ``xen-save-devices-state`` writes, with the guest's own run state (Machine.device_state)."""
        discovery.refuse_what_cannot_be_migrated(self._monitor)
        return self._state.save(self._ran_as if self._stopped else self._status())

    def dirty_source(self) -> None:
        """Nobody outside of QEMU sees its dirty log (Machine.dirty_source)."""

    def address_space(self) -> AddressSpace:
        """QEMU is made to ask for a userfaultfd, where that is possible and not forbidden (Machine.address_space)."""
        return address_space(self._monitor, self.pid, self._makeup)

    def setting(self) -> Setting:
        """What a snapshot of it has to work with."""
        return setting(self._monitor)

    def describe(self) -> InspectQemuReport:
        """What would be saved and how each block is reached; nothing is paused."""
        no_snapshot = self._no_snapshot()
        return InspectQemuReport(
            qmp=self._monitor.name,
            pid=self.pid,
            qemu_version=".".join(map(str, self._monitor.version)),
            status=self._status(),
            machine=self.name,
            target=self.target,
            capture="stopped" if not self.is_running() else "compare" if no_snapshot else "snapshot",
            no_snapshot=no_snapshot,
            blocks=tuple(
                QemuBlockReport(
                    **asdict(each.block),
                    memory=str(each.memory.kind),
                    path=each.memory.path,
                    data_pages=sum(
                        found.count for found in each.memory.source.data_ranges(PageRange(0, _pages(each.block)))
                    ),
                    pages=_pages(each.block),
                )
                for each in self.blocks
            ),
        )

    def _no_snapshot(self) -> str:
        if not self.is_running():
            return "the guest stands still"
        try:
            return self.address_space().unproven
        except FixedRamError as error:
            return error.message

    def close(self) -> None:
        """Disconnect (Machine.close)."""
        if not self._stopped:
            self._guardian.close()
        try:
            with contextlib.suppress(FixedRamError):  # QEMU may be gone, and that has been said
                self._stack.close()
        finally:
            # our own request to go on failed: the guardian's is the last hope, with the connection for itself
            self._guardian.let_go()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """The end of QEMU's process from now on ends every call of the monitor."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError as error:
            raise MachineError(f"{self._monitor.name!r}: process {self.pid} has ended") from error
        except OSError as error:
            raise HostError.from_os(f"cannot watch process {self.pid}", error) from error
        self._monitor.pidfd = pidfd
        try:
            yield
        finally:
            self._monitor.pidfd = None
            os.close(pidfd)

    def _status(self) -> str:
        return discovery.run_state(self._monitor)

    def _refuse_what_cannot_be_saved(self) -> None:
        discovery.refuse_what_cannot_be_saved(self._monitor)
        if (status := self._status()) in BUSY:
            raise MachineError(f"{self._monitor.name!r}: QEMU is in state {status!r}, there is no guest to save")

    def _reach_memory(self, found: Makeup) -> None:
        refuse_unreachable_memory(self._monitor, found.blocks)
        self._makeup = found
        self.blocks = tuple(self._reach(block) for block in found.blocks)

    def _reach(self, block: QemuBlock) -> ReachedBlock:
        try:
            memory = open_process_memory(self.pid, block.address, block.used_length)
        except HostError as error:
            raise HostError(f"block {block.idstr!r}: {error.message}", hint=error.hint) from error
        self._memory.callback(memory.source.close)
        return ReachedBlock(block=block, memory=memory)

    def _look_back(self) -> Held:
        """What became of the guest since ``pause``."""
        assert self._events is not None, "get_ready() comes first"
        status = self._status()
        events, complete = self._events.take()
        return look_back(events, status, ours=self._stopped, complete=complete)

    def _go_on_if(self, ours: bool) -> None:
        """End the time in which the guest is held; it goes on if it stands still because of us."""
        if ours:
            self._monitor.execute("cont")
        self._stopped = self._held = False
        self._guardian.disarm()

    def _go_on(self) -> None:
        """Runs in the guardian: the connection is the one thing that is left of us.

        However long QEMU hangs: of a connection that is closed it reads nothing more, not even what was sent before.
        """
        fd = self._monitor.sock.fileno()
        request, answer = memoryview(_CONTINUE), b""
        poll = select.poll()
        while b'"guardian"' not in answer:
            poll.register(fd, select.POLLIN | (select.POLLOUT if request else 0))
            for _, events in poll.poll():
                if request and events & select.POLLOUT:
                    request = request[os.write(fd, request) :]
                elif events & select.POLLIN:
                    if not (data := os.read(fd, 1 << 16)):
                        return
                    answer = answer[-64:] + data
                if events & (select.POLLHUP | select.POLLERR):
                    return


def _pages(block: QemuBlock) -> int:
    return block.used_length // TARGET_PAGE_SIZE
