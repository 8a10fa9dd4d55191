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
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.host.guardian import Guardian
from parallel_fixedram.host.process_memory import ProcessMemory, open_process_memory
from parallel_fixedram.qemu import discovery
from parallel_fixedram.qemu.device_state import DeviceState
from parallel_fixedram.qemu.discovery import QemuBlock
from parallel_fixedram.qemu.monitor import TIMEOUT_SECONDS, Monitor

RUNNING = ("running", "suspended")
"""Run states in which the guest, or a wake-up, changes memory."""

_BUSY = ("inmigrate", "finish-migrate", "restore-vm", "save-vm", "colo")
"""Run states in which there is no guest yet, or it belongs to somebody else's operation."""

_CONTINUE = b'\xff\n{"execute": "cont", "id": "guardian"}\n'
"""0xff makes QEMU forget a command of which we may have sent only a half (QEMU docs/interop/qmp-spec.rst)."""
_GUARDIAN_SECONDS = 30.0


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
        timeout: how long QEMU may take for an answer, seconds.

    Attributes:
        name: machine type.
        pid: process id of the QEMU.
        blocks: its RAMBlocks and how each is reached.

    Raises:
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; says which right is missing.
    """

    def __init__(self, socket_path: str, *, pid: int | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
        self._stopped = False
        with ExitStack() as stack:
            self._monitor = stack.enter_context(Monitor(socket_path, timeout=timeout))
            discovery.refuse_what_cannot_be_saved(self._monitor)
            if (status := self._status()) in _BUSY:
                raise MachineError(f"{socket_path!r}: QEMU is in state {status!r}, there is no guest to save")
            self.name = discovery.machine_type(self._monitor)
            self._state = stack.enter_context(DeviceState(self._monitor))
            self.pid = discovery.find_process(self._monitor, self._state.fd, pid)
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
                block=RAMBlock(
                    idstr=each.block.idstr,
                    used_length=each.block.used_length,
                    max_length=each.block.max_length,
                    host_page_size=each.block.host_page_size,
                ),
                source=each.memory.source,
                main=each.block.main,
            )
            for each in self.blocks
        ]

    def pause(self) -> bool:
        """Stop the guest; from then on the guardian watches (Machine.pause)."""
        if self._status() not in RUNNING:
            return False
        self._guardian.arm()
        self._stopped = True
        self._monitor.execute("stop")
        return True

    def resume(self) -> None:
        """Let the guest go on if ``pause`` stopped it (Machine.resume)."""
        if self._stopped:
            self._monitor.execute("cont")
            self._stopped = False
            self._guardian.disarm()

    def device_state(self) -> bytes:
        """What ``xen-save-devices-state`` writes (Machine.device_state)."""
        return self._state.save()

    def dirty_source(self) -> None:
        """Nobody outside of QEMU sees its dirty log (Machine.dirty_source)."""

    def close(self) -> None:
        """Disconnect (Machine.close)."""
        if not self._stopped:  # otherwise our own request to go on failed, and the guardian's is the last hope
            self._guardian.close()
        with contextlib.suppress(FixedRamError):  # QEMU may be gone, and that has been said
            self._stack.close()

    def _status(self) -> str:
        return str(self._monitor.execute("query-status")["status"])

    def _reach(self, block: QemuBlock, stack: ExitStack) -> ReachedBlock:
        try:
            memory = open_process_memory(self.pid, block.address, block.used_length)
        except HostError as error:
            raise HostError(f"block {block.idstr!r}: {error.message}", hint=error.hint) from error
        stack.callback(memory.source.close)
        return ReachedBlock(block=block, memory=memory)

    def _go_on(self) -> None:
        """Runs in the guardian: the connection is the one thing that is left of us."""
        fd = self._monitor.sock.fileno()
        deadline = time.monotonic() + _GUARDIAN_SECONDS
        request, answer = memoryview(_CONTINUE), b""
        poll = select.poll()
        while time.monotonic() < deadline and b'"guardian"' not in answer:
            poll.register(fd, select.POLLIN | (select.POLLOUT if request else 0))
            for _, events in poll.poll(1000):
                if request and events & select.POLLOUT:
                    request = request[os.write(fd, request) :]
                elif events & select.POLLIN:
                    answer = answer[-64:] + os.read(fd, 1 << 16)
                if events & (select.POLLHUP | select.POLLERR):
                    return
