"""LibvirtMachine: a running domain of libvirt as a Machine.

::

    us -- QMP, by a Bridge --> libvirt --> QEMU            all that QemuMachine asks and does
       <-- /proc/PID: RAM, mapped or copied -----          as with any QEMU
    guardian -- a connection of its own --> libvirt        resumes the domain if we die

Its process is found like that of any QEMU: by a descriptor that we hand to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from parallel_fixedram.core.observer import Observer
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.machines.libvirt.bridge import Bridge
from parallel_fixedram.machines.libvirt.keeper import Keeper
from parallel_fixedram.machines.libvirt.overlays import LibvirtOverlays, merge
from parallel_fixedram.machines.qemu.drives import Drive
from parallel_fixedram.machines.qemu.machine import QemuMachine
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.overlays import Overlays
from parallel_fixedram.machines.qemu.run_state import RunState

ANSWER_SECONDS = 40.0
"""How long an answer may take: libvirt itself waits up to 30 s for another job on the domain."""


class LibvirtMachine(QemuMachine):
    """A Machine; a context manager. Opening it touches nothing.

    Args:
        domain: name or UUID of a running domain.
        uri: of a local connection to libvirt (core.libvirt_uri).
        stop: whether the domain stays suspended from the saved instant on, and is ended once the file has its name; if
            the save fails, it goes on.

    Raises:
        MachineError: libvirt cannot be reached, or the domain cannot be saved this way.
        HostError: its memory cannot be reached, or libvirt's library is missing.
    """

    def __init__(self, domain: str, *, uri: str, stop: bool = False) -> None:
        self._uri = uri
        self._stop = stop
        super().__init__(domain, timeout=ANSWER_SECONDS)

    def _connect(self, address: str, seconds: float, stack: ExitStack) -> Monitor:
        self._bridge = stack.enter_context(Bridge(self._uri, address))
        return stack.enter_context(Monitor(self._bridge.name, kind="domain", sock=self._bridge.sock, timeout=seconds))

    def _run_state(self) -> RunState:
        bridge = self._bridge
        keeper = Keeper(self._uri, bridge.uuid, bridge.pidfd)
        return RunState(self.monitor, Guardian(keeper.resume, [bridge.pidfd], keeper.prepare), stays=self._stop)

    def disks(self) -> Sequence[str]:
        """None if the domain will be ended, since no disk is then written to (Machine.disks)."""
        return () if self._stop else super().disks()

    def overlays(self, folder: str | None) -> Overlays:
        """Overlays that libvirt puts the disks on (Machine.overlays)."""
        return LibvirtOverlays(self.monitor, self.pid, folder)

    def merge(self, drive: Drive, into: int, what: str, observer: Observer) -> int:
        """Have libvirt merge the images (QemuMachine.merge)."""
        return merge(self.monitor, drive, into, what, observer)

    def definition(self) -> bytes:
        """The domain's XML in a form that another libvirt accepts, passwords included (Machine.definition)."""
        xml = self.monitor.execute("libvirt-xml")
        if not isinstance(xml, str):
            raise self.monitor.malformed("libvirt-xml", xml)
        return xml.encode()

    def saved(self) -> None:
        """End the domain if that was requested (Machine.saved)."""
        if self._stop:
            self.monitor.pidfd = None  # so that the end of its process is not taken for a failure
            self.monitor.execute("libvirt-destroy")
            self.run_state.ended()
