"""QemuMachine: a running QEMU as a Machine, reached through its monitor and, for its RAM, from outside.

::

    us -- QMP: stop, device state, cont --> QEMU
       <-- /proc/PID: RAM, mapped or copied --
    guardian -- cont, on the same connection, if we die in between --> QEMU

Nothing of QEMU is changed but its run state, and that is given back: no migration is started, no capability or
parameter set.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.host import processes
from parallel_fixedram.host.guardian import Guardian
from parallel_fixedram.host.process_memory import ProcessMemory, open_process_memory
from parallel_fixedram.qemu import discovery
from parallel_fixedram.qemu.device_state import DeviceState
from parallel_fixedram.qemu.discovery import QemuBlock
from parallel_fixedram.qemu.disks import sync_disks
from parallel_fixedram.qemu.monitor import TIMEOUT_SECONDS, Events, Monitor

GREETING_SECONDS = 5.0
"""How long a running QEMU may take to greet: nothing but its main loop has to turn for it."""

_BUSY = ("inmigrate", "finish-migrate", "restore-vm", "save-vm", "colo")
"""Run states in which there is no guest yet, or it belongs to somebody else's operation."""

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
        pid: process id of the QEMU.
        blocks: its RAMBlocks and how each is reached.

    Raises:
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; says which right is missing.
    """

    def __init__(self, socket_path: str, *, pid: int | None = None, timeout: float | None = None) -> None:
        seconds = TIMEOUT_SECONDS if timeout is None else timeout
        self._runs = self._stopped = False
        self._events: Events | None = None
        with ExitStack() as stack:
            self._monitor = stack.enter_context(
                Monitor(socket_path, timeout=seconds, greeting_timeout=min(seconds, GREETING_SECONDS))
            )
            discovery.refuse_what_cannot_be_saved(self._monitor)
            if (status := self._status()) in _BUSY:
                raise MachineError(f"{socket_path!r}: QEMU is in state {status!r}, there is no guest to save")
            self.name = discovery.machine_type(self._monitor)
            self._state = stack.enter_context(DeviceState(self._monitor))
            self.pid = discovery.find_process(self._monitor, self._state.fd, pid)
            self._pidfd = stack.enter_context(self._watched())
            self.blocks = tuple(self._reach(block, stack) for block in discovery.ramblocks(self._monitor))
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

    def prepare(self) -> bool:
        """Ask whether the guest runs, and listen for its stop (Machine.prepare)."""
        if self._events is None:
            self._events = self._stack.enter_context(self._monitor.listen("STOP"))
        self._runs = self._status() in discovery.RUNNING
        self._events.clear()
        return self._runs

    def sync_disks(self) -> Sequence[str]:
        """Sync the files behind its disks (Machine.sync_disks); not where the guest stands still already."""
        return sync_disks(self._monitor, self.pid) if self._runs else ()

    def pause(self) -> bool:
        """Stop the guest; from then on the guardian watches (Machine.pause).

        Whether this stopped anything QEMU tells by an event: somebody else may have started or stopped it since
        ``prepare``. To a guest that stands still, ``stop`` does nothing (QEMU system/cpus.c, do_vm_stop).
        """
        assert self._events is not None, "prepare() comes first"
        self._events.clear()  # a stop that was reported already is somebody else's
        if self._runs:
            self._guardian.arm()
            self._stopped = True
        self._monitor.execute("stop")
        self._stopped = self._events.any()
        if self._stopped:
            self._guardian.arm()
        else:
            self._guardian.disarm()
        return self._stopped

    def resume(self) -> None:
        """Let the guest go on if ``pause`` stopped it (Machine.resume).

        Raises:
            MachineError: QEMU refuses, does not answer, or has ended: then what was read was not its memory.
        """
        if self._stopped:
            self._monitor.execute("cont")
            self._stopped = False
            self._guardian.disarm()
        elif processes.has_ended(self._pidfd):
            raise MachineError(f"{self._monitor.name!r}: process {self.pid} has ended")

    def device_state(self) -> bytes:
        """What ``xen-save-devices-state`` writes (Machine.device_state)."""
        return self._state.save()

    def dirty_source(self) -> None:
        """Nobody outside of QEMU sees its dirty log (Machine.dirty_source)."""

    def describe(self) -> dict[str, Any]:
        """What would be saved and how each block is reached, as a JSON object; nothing is paused."""
        return {
            "verb": "inspect",
            "qmp": self._monitor.name,
            "pid": self.pid,
            "version": ".".join(map(str, self._monitor.version)),
            "status": self._status(),
            "machine": self.name,
            "blocks": [
                {
                    **asdict(each.block),
                    "memory": str(each.memory.kind),
                    "path": each.memory.path,
                    "data_pages": sum(
                        found.count for found in each.memory.source.data_ranges(PageRange(0, _pages(each.block)))
                    ),
                    "pages": _pages(each.block),
                }
                for each in self.blocks
            ],
        }

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
    def _watched(self) -> Iterator[int]:
        """A descriptor of QEMU's process, whose end from now on ends every call of the monitor."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError as error:
            raise MachineError(f"{self._monitor.name!r}: process {self.pid} has ended") from error
        except OSError as error:
            raise HostError.from_os(f"cannot watch process {self.pid}", error) from error
        self._monitor.pidfd = pidfd
        try:
            yield pidfd
        finally:
            self._monitor.pidfd = None
            os.close(pidfd)

    def _status(self) -> str:
        return discovery.run_state(self._monitor)

    def _reach(self, block: QemuBlock, stack: ExitStack) -> ReachedBlock:
        try:
            memory = open_process_memory(self.pid, block.address, block.used_length)
        except HostError as error:
            raise HostError(f"block {block.idstr!r}: {error.message}", hint=error.hint) from error
        stack.callback(memory.source.close)
        return ReachedBlock(block=block, memory=memory)

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
