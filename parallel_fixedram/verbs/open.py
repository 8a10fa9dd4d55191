"""``open_guest``, ``open_ram``, ``open_qemu``, ``open_libvirt``, ``open_image``: what the other verbs work on.

Whoever opens it has to close it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from parallel_fixedram.core.libvirt_uri import SYSTEM, local_uri
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.qmp_address import qmp_socket
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_files import RamFile, RamFiles

if TYPE_CHECKING:
    from parallel_fixedram.machines.libvirt.machine import LibvirtMachine
    from parallel_fixedram.machines.qemu.machine import QemuMachine

__all__ = [
    "GuestProcess",
    "GuestSpec",
    "Image",
    "RamFile",
    "open_guest",
    "open_image",
    "open_libvirt",
    "open_qemu",
    "open_ram",
]


def open_guest(spec: str | GuestSpec, *, running: bool = False, observer: Observer = SILENT) -> GuestProcess:
    """Boot a built-in guest, which lives until it is closed.

    Args:
        spec: such as ``"dense,size=1GiB,seed=7"``; see ``GuestSpec.parse``.
        running: whether to let it run freely; otherwise it does the steps in ``spec``, if any, and then stands still.
        observer: told of the phase ``fill``, while its RAM is filled.

    Raises:
        RequestError: the specification is wrong.
        HostError: there is not enough memory.
        MachineError: the guest failed to boot.
    """
    spec = GuestSpec.parse(spec) if isinstance(spec, str) else spec
    with ExitStack() as stack:
        guest = stack.enter_context(GuestProcess(spec, observer))
        if running:
            guest.start()
        elif spec.steps:
            guest.run(spec.steps)
        stack.pop_all()
    return guest


def open_ram(files: Mapping[str, str] | Sequence[RamFile]) -> RamFiles:
    """Open files in shared memory as a machine's RAM; nobody may write to them during a save.

    Args:
        files: path by block name, or RamFile values if a block is only a part of a file.

    Raises:
        HostError: a file cannot be opened.
        RequestError: a file, name or size is not suitable for a RAMBlock.
    """
    if isinstance(files, Mapping):
        files = [RamFile(idstr=idstr, path=path) for idstr, path in files.items()]
    return RamFiles(files, name=RAM_ONLY_MACHINE)


def open_qemu(socket_path: str, *, pid: int | None = None, timeout: float | None = None) -> QemuMachine:
    """Connect to a running QEMU as a machine to save, with RAM and device state; its guest keeps running.

    Args:
        socket_path: a QMP socket that no other client is connected to: its path, or ``unix:PATH``, optionally followed
            by options as for QEMU's ``-qmp``.
        pid: process id of the QEMU, in case it cannot be found.
        timeout: how long QEMU may take to answer, seconds; None for 30.

    Raises:
        RequestError: it is not a unix socket.
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; the hint says which right is missing.
    """
    from parallel_fixedram.machines.qemu.machine import QemuMachine

    return QemuMachine(qmp_socket(socket_path, os.path.exists), pid=pid, timeout=timeout)


def open_libvirt(domain: str, *, uri: str = SYSTEM, stop: bool = False) -> LibvirtMachine:
    """Open a running domain of libvirt as a machine to save; its guest keeps running.

    Args:
        domain: its name or UUID.
        uri: of the connection to this host's libvirt.
        stop: whether to end the domain once the file has its name, as ``virsh save`` does; it stays suspended from the
            saved instant on.

    Raises:
        RequestError: the URI is not for this host's libvirt.
        MachineError: libvirt cannot be reached, or the domain cannot be saved this way.
        HostError: its memory cannot be reached, or libvirt's Python library is missing.
    """
    from parallel_fixedram.machines.libvirt.machine import LibvirtMachine

    return LibvirtMachine(domain, uri=local_uri(uri), stop=stop)
