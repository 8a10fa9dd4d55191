"""QemuMachine: a running QEMU as a Machine, reached through its monitor and, for its RAM, from outside.

::

    us -- QMP: stop, device state, cont --> QEMU        run_state.py, device_state.py
       <-- /proc/PID: RAM, mapped or copied --          memory.py

Only QEMU's run state is changed, and that is restored: no migration is started, and no capability or parameter is set.
Others may use the same QEMU: before the guest goes on we find out what they did to it meanwhile (``instant.py``), and
right after that whether it still has the same blocks and devices.
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
"""How long a running QEMU may take to greet, for which only its main loop has to run."""


class QemuMachine(Closing):
    """A Machine; a context manager. Opening it touches nothing.

    Args:
        socket_path: a QMP socket that no other client is connected to.
        pid: process id of the QEMU, in case it cannot be found.
        timeout: how long QEMU may take to answer, seconds; None for the monitor's default.

    Attributes:
        name: machine type.
        target: architecture of the guest.
        pid: process id of the QEMU.
        monitor: its QMP session.
        memory: its RAMBlocks and how each is reached.
        run_state: stops the guest, and lets it go on.

    Raises:
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; the hint says which right is missing.
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
            stack.callback(lambda: self.memory.close())  # not self.memory.close: look_again replaces it
            self.run_state = self._run_state()
            self._stack = stack.pop_all()

    def _connect(self, address: str, seconds: float, stack: ExitStack) -> Monitor:
        """Connect the monitor; the stack closes it."""
        greeting = min(seconds, GREETING_SECONDS)
        return stack.enter_context(Monitor(address, timeout=seconds, greeting_timeout=greeting))

    def _run_state(self) -> RunState:
        """Make what stops the guest and lets it go on."""
        return RunState(self.monitor)

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """All RAMBlocks, in QEMU's order (Machine.guest_blocks)."""
        return self.memory.guest_blocks()

    def holds(self, path: str) -> bool:
        """No: its memory may be a file, but replacing a file does not change the old one (Machine.holds)."""
        return False

    def is_running(self) -> bool:
        """Ask QEMU (Machine.is_running)."""
        return self.run_state.is_running()

    def get_ready(self) -> None:
        """Find out whether the guest runs, and begin to listen for events (Machine.get_ready)."""
        self.run_state.get_ready()

    def sync_disks(self) -> Sequence[str]:
        """Sync the files behind its disks, unless the guest stands still already (Machine.sync_disks)."""
        return sync_disks(self.monitor, self.pid) if self.run_state.ran() else ()

    def disks(self) -> Sequence[str]:
        """Ask QEMU (Machine.disks)."""
        return disk_names(self.monitor)

    def overlays(self, folder: str | None) -> Overlays:
        """Overlays that QEMU makes and puts its disks on (Machine.overlays)."""
        return Overlays(self.monitor, self.pid, folder)

    def merge(self, drive: Drive, into: int, what: str, observer: Observer) -> int:
        """Have QEMU merge the top image of a disk into another of its images (commit.merge)."""
        return merge(self.monitor, drive, into, what, observer)

    def pause(self) -> bool:
        """Stop the guest (Machine.pause)."""
        return self.run_state.pause()

    def resume(self) -> str | None:
        """Let the guest go on if ``pause`` stopped it and nobody else has changed that (Machine.resume)."""
        return self.run_state.resume()

    def look_again(self) -> bool:
        """Find out whether RAMBlocks or devices have changed since ``guest_blocks`` (Machine.look_again)."""
        found = discovery.makeup(self.monitor)
        if found == self.memory.makeup:
            return False
        _refuse_what_cannot_be_saved(self.monitor)
        self.memory.close()
        self.memory = Memory(self.monitor, self.pid, found)
        return True

    def device_state(self) -> bytes:
        """Device sections as ``xen-save-devices-state`` writes them, with the guest's run state
        (Machine.device_state)."""
        discovery.refuse_what_cannot_be_migrated(self.monitor)
        return self._state.save(self.run_state.to_save())

    def definition(self) -> bytes:
        """None: it is not a domain of libvirt (Machine.definition)."""
        return b""

    def saved(self) -> None:
        """Nothing to do: the guest runs on (Machine.saved)."""

    def dirty_source(self) -> None:
        """None: QEMU's dirty log cannot be read from outside (Machine.dirty_source)."""

    def address_space(self) -> AddressSpace:
        """Make QEMU ask for a userfaultfd, if that is possible and not forbidden (Machine.address_space)."""
        return address_space(self.monitor, self.pid, self.memory.makeup)

    def setting(self) -> Setting:
        """The conditions under which a snapshot of it is taken."""
        return setting(self.monitor)

    def close(self) -> None:
        """Disconnect (Machine.close)."""
        self.run_state.close()
        try:
            with contextlib.suppress(FixedRamError):  # QEMU may be gone, which has been reported already
                self._stack.close()
        finally:
            # last, because the guardian may use the same connection to QEMU
            self.run_state.let_go()


@contextlib.contextmanager
def _watched(monitor: Monitor, pid: int) -> Iterator[None]:
    """From now on the monitor's calls end if QEMU's process does."""
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
