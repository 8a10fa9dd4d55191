"""``open_guest``, ``open_ram``, ``open_qemu``, ``open_libvirt``, ``open_image``: what the other verbs work on.

Who opens it closes it.
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
        running: let it run freely; otherwise it does the steps that ``spec`` asks for, if any, and then stands still.
        observer: hears of the phase ``fill``, while its RAM is filled.

    Raises:
        RequestError: the specification is wrong.
        HostError: not enough memory.
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
    """Take files in shared memory as a machine's RAM; whoever runs on it has to stand still during a save.

    Args:
        files: path by block name, or RamFile values where a block is a part of a file.

    Raises:
        HostError: a file cannot be opened.
        RequestError: a file, a name or a size that cannot be a RAMBlock.
    """
    if isinstance(files, Mapping):
        files = [RamFile(idstr=idstr, path=path) for idstr, path in files.items()]
    return RamFiles(files, name=RAM_ONLY_MACHINE)


def open_qemu(socket_path: str, *, pid: int | None = None, timeout: float | None = None) -> QemuMachine:
    """Connect to a running QEMU as a machine to save, RAM and device state; its guest keeps running.

    Args:
        socket_path: a QMP socket that no other client is attached to: its path, or ``unix:PATH``, each also with the
            options of QEMU's ``-qmp`` after it.
        pid: process id of the QEMU, where it cannot be found by itself.
        timeout: how long QEMU may take for an answer, seconds; None for 30.

    Raises:
        RequestError: it is not a unix socket.
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; says which right is missing.
    """
    from parallel_fixedram.machines.qemu.machine import QemuMachine

    return QemuMachine(qmp_socket(socket_path, os.path.exists), pid=pid, timeout=timeout)


def open_libvirt(domain: str, *, uri: str = SYSTEM, stop: bool = False) -> LibvirtMachine:
    """Open a running domain of libvirt as a machine to save; its guest keeps running.

    Args:
        domain: its name or UUID.
        uri: of the connection, to the libvirt of this host.
        stop: end the domain once its file has its name, as ``virsh save`` does; it stands still from the instant on.

    Raises:
        RequestError: the URI leads elsewhere.
        MachineError: libvirt cannot be reached, or the domain cannot be saved this way.
        HostError: its memory cannot be reached, or libvirt's Python library is missing.
    """
    from parallel_fixedram.machines.libvirt.machine import LibvirtMachine

    return LibvirtMachine(domain, uri=local_uri(uri), stop=stop)
