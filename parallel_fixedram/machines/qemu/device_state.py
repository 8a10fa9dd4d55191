"""Device state of a stopped QEMU, without a migration.

``xen-save-devices-state`` (stable, in every build, no Xen needed) writes ``QEVM``, version 3, the FULL sections of all
devices, and an end mark, in a millisecond or two. We have it write to anonymous memory, passed as a descriptor: no
file, no name, nothing to clean up. ``live: false`` is essential: otherwise QEMU would inactivate its disks.
Source: QEMU migration/savevm.c (qmp_xen_save_devices_state, qemu_save_device_state).
"""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import Self

from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import FormatError, HostError, MachineError
from parallel_fixedram.format.globalstate import with_run_state
from parallel_fixedram.format.stream import QEMU_VM_EOF, QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor

_HEAD = struct.pack(">II", QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION)


class DeviceState:
    """Context manager around memory that QEMU writes its device state to, as often as it is asked.

    Args:
        monitor: of the QEMU.

    Raises:
        MachineError: QEMU does not accept the descriptor.
        HostError: there is no memory.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.fd = -1
        self._fdset = FdSet(monitor)

    @undone_if_it_fails
    def __enter__(self) -> Self:
        try:
            self.fd = os.memfd_create("device-state", os.MFD_CLOEXEC)
            # QEMU accepts only a descriptor with exactly the access mode that it wants
            writable = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError.from_os("cannot get memory for the device state", error) from error
        with linux.closing(writable):
            self._fdset.add(writable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._fdset.close()
        finally:
            self.close()

    def close(self) -> None:
        """Release our side of the memory; QEMU releases its own at the latest when the monitor is closed."""
        if self.fd >= 0:
            linux.close(self.fd)
            self.fd = -1

    def save(self, run_state: str) -> bytes:
        """The sections of all devices, head to footer, without an end mark; QEMU has to be stopped.

        Args:
            run_state: the run state that they shall record.

        Raises:
            MachineError: QEMU cannot save a device, or writes something else.
        """
        channel = FileChannel(self.fd, "device state")
        start = channel.stat().st_size  # QEMU continues after what it wrote the last time
        arguments = {"filename": self._fdset.path, "live": False}
        self._monitor.execute("xen-save-devices-state", arguments)
        data = channel.bytes_at(start, channel.stat().st_size - start)
        if not data.startswith(_HEAD) or data[-1] != QEMU_VM_EOF or len(data) <= len(_HEAD) + 1:
            raise MachineError(f"QEMU wrote {len(data)} bytes that are not device state")
        try:
            return with_run_state(data[len(_HEAD) : -1], run_state)
        except FormatError as error:
            raise MachineError(f"the device state is malformed: {error.message}") from error
