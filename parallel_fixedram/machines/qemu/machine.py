"""QemuMachine: a running QEMU as a Machine, reached through its monitor and, for its RAM, from outside.

::

    us -- QMP: stop, device state, cont --> QEMU        run_state.py, device_state.py
       <-- /proc/PID: RAM, mapped or copied --          memory.py

Nothing of QEMU is changed but its run state, and that is given back: no migration is started, no capability or
parameter set. We are not alone with it: what others do to the guest meanwhile is found out before it goes on
(``instant.py``), and whether it is still made of the same blocks and devices, right after that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.protocols import AddressSpace, GuestBlock
from parallel_fixedram.core.targets import check_target
from parallel_fixedram.machines.qemu import discovery
from parallel_fixedram.machines.qemu.commit import merge
from parallel_fixedram.machines.qemu.device_state import DeviceState
from parallel_fixedram.machines.qemu.disks import sync_disks
from parallel_fixedram.machines.qemu.drives import Drive, disk_names
from parallel_fixedram.machines.qemu.memory import Memory
from parallel_fixedram.machines.qemu.monitor import TIMEOUT_SECONDS, Monitor
from parallel_fixedram.machines.qemu.overlays import Overlays
from parallel_fixedram.machines.qemu.run_state import RunState
from parallel_fixedram.machines.qemu.target import check_settings, read_target
from parallel_fixedram.machines.qemu.trials import Setting
from parallel_fixedram.machines.qemu.watch import address_space, setting

GREETING_SECONDS = 5.0
"""How long a running QEMU may take to greet: nothing but its main loop has to turn for it."""


class QemuMachine(Closing):
    """A Machine; a context manager. Opening it touches nothing.

    Args:
        socket_path: QMP socket that no other client is attached to.
        pid: process id of the QEMU, where it cannot be found by itself.
        timeout: how long QEMU may take for an answer, seconds; None for the monitor's own time.

    Attributes:
        name: machine type.
        target: architecture of the guest.
        pid: process id of the QEMU.
        monitor: its QMP session.
        memory: its RAMBlocks and how each is reached.
        run_state: whether its guest runs, and why not.

    Raises:
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; says which right is missing.
    """

    def __init__(self, socket_path: str, *, pid: int | None = None, timeout: float | None = None) -> None:
        seconds = TIMEOUT_SECONDS if timeout is None else timeout
        with ExitStack() as stack:
            self.monitor = self._connect(socket_path, seconds, stack)
            _refuse_what_cannot_be_saved(self.monitor)
            self.name = discovery.machine_type(self.monitor)
            self.target = read_target(self.monitor)
            check_target(self.target, self.name)
            check_settings(self.monitor)
            self._state = stack.enter_context(DeviceState(self.monitor))
            self.pid = discovery.find_process(self.monitor, self._state.fd, pid)
            stack.enter_context(_watched(self.monitor, self.pid))
            self.memory = Memory(self.monitor, self.pid, discovery.makeup(self.monitor))
            stack.callback(lambda: self.memory.close())  # which may be another one by then
            self.run_state = self._run_state()
            self._stack = stack.pop_all()

    def _connect(self, address: str, seconds: float, stack: ExitStack) -> Monitor:
        """The monitor, until the stack is closed."""
        greeting = min(seconds, GREETING_SECONDS)
        return stack.enter_context(Monitor(address, timeout=seconds, greeting_timeout=greeting))

    def _run_state(self) -> RunState:
        """What stops the guest and lets it go on."""
        return RunState(self.monitor)

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """All RAMBlocks, in QEMU's order (Machine.guest_blocks)."""
        return self.memory.guest_blocks()

    def holds(self, path: str) -> bool:
        """No: its memory may be a file, but one that is replaced stays what it is (Machine.holds)."""
        return False

    def is_running(self) -> bool:
        """Ask QEMU (Machine.is_running)."""
        return self.run_state.is_running()

    def get_ready(self) -> None:
        """Ask whether the guest runs, and listen to what happens to it (Machine.get_ready)."""
        self.run_state.get_ready()

    def sync_disks(self) -> Sequence[str]:
        """Sync the files behind its disks (Machine.sync_disks); not where the guest stands still already."""
        return sync_disks(self.monitor, self.pid) if self.run_state.ran() else ()

    def disks(self) -> Sequence[str]:
        """Ask QEMU (Machine.disks)."""
        return disk_names(self.monitor)

    def overlays(self, folder: str | None) -> Overlays:
        """QEMU makes them, and moves its disks onto them (Machine.overlays)."""
        return Overlays(self.monitor, self.pid, folder)

    def merge(self, drive: Drive, into: int, what: str, observer: Observer) -> int:
        """Have the top image of a disk merged into another one of its images (commit.merge)."""
        return merge(self.monitor, drive, into, what, observer)

    def pause(self) -> bool:
        """Stop the guest (Machine.pause)."""
        return self.run_state.pause()

    def resume(self) -> str | None:
        """Let the guest go on if ``pause`` stopped it, and nobody else did anything about that (Machine.resume)."""
        return self.run_state.resume()

    def look_again(self) -> bool:
        """Ask whether RAMBlocks and devices are those of ``guest_blocks`` (Machine.look_again)."""
        found = discovery.makeup(self.monitor)
        if found == self.memory.makeup:
            return False
        _refuse_what_cannot_be_saved(self.monitor)
        self.memory.close()
        self.memory = Memory(self.monitor, self.pid, found)
        return True

    def device_state(self) -> bytes:
        """What ``xen-save-devices-state`` writes, with the guest's own run state (Machine.device_state)."""
        discovery.refuse_what_cannot_be_migrated(self.monitor)
        return self._state.save(self.run_state.to_save())

    def definition(self) -> bytes:
        """libvirt does not know it (Machine.definition)."""
        return b""

    def saved(self) -> None:
        """It goes on (Machine.saved)."""

    def dirty_source(self) -> None:
        """Nobody outside of QEMU sees its dirty log (Machine.dirty_source)."""

    def address_space(self) -> AddressSpace:
        """QEMU is made to ask for a userfaultfd, where that is possible and not forbidden (Machine.address_space)."""
        return address_space(self.monitor, self.pid, self.memory.makeup)

    def setting(self) -> Setting:
        """What a snapshot of it has to work with."""
        return setting(self.monitor)

    def close(self) -> None:
        """Disconnect (Machine.close)."""
        self.run_state.close()
        try:
            with contextlib.suppress(FixedRamError):  # QEMU may be gone, and that has been said
                self._stack.close()
        finally:
            self.run_state.let_go()


@contextlib.contextmanager
def _watched(monitor: Monitor, pid: int) -> Iterator[None]:
    """The end of QEMU's process from now on ends every call of the monitor."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise MachineError(f"{monitor.name!r}: process {pid} has ended") from error
    except OSError as error:
        raise HostError.from_os(f"cannot watch process {pid}", error) from error
    monitor.pidfd = pidfd
    try:
        yield
    finally:
        monitor.pidfd = None
        os.close(pidfd)


def _refuse_what_cannot_be_saved(monitor: Monitor) -> None:
    discovery.refuse_what_cannot_be_saved(monitor)
    discovery.state_to_save(monitor)
