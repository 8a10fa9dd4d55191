"""What the package does, put together: the gate, a machine, the engine.

The one place where guests and engine meet. The command line calls these functions, and so may any program: each takes
plain values, returns a report from ``core.report``, and raises only the errors of ``core.errors``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from parallel_fixedram.core.capabilities import capabilities_for_restore, validate_recorded
from parallel_fixedram.core.profiles import Profile
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.qmp_address import qmp_socket
from parallel_fixedram.core.report import DiffReport, RestoreReport, VerifyReport
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.core.words import choice
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.engine.workers.progress import Progress
from parallel_fixedram.image import compare as _compare
from parallel_fixedram.image import restore as _restore
from parallel_fixedram.image import verify as _verify
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.restore import Destination
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_files import RamFile, RamFiles

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.machine import QemuMachine


def open_guest(spec: str | GuestSpec, *, running: bool = False, progress: Progress | None = None) -> GuestProcess:
    """Boot a built-in guest, which lives until it is closed.

    Args:
        spec: such as ``"dense,size=1GiB,seed=7"``; see ``GuestSpec.parse``.
        running: let it run freely; otherwise it does the steps that ``spec`` asks for, if any, and then stands still.
        progress: ``progress(phase, done, total)`` in bytes, while its RAM is filled.

    Raises:
        RequestError: the specification is wrong.
        HostError: not enough memory.
        MachineError: the guest failed to boot.
    """
    spec = GuestSpec.parse(spec) if isinstance(spec, str) else spec
    with ExitStack() as stack:
        guest = stack.enter_context(GuestProcess(spec, progress))
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
            options of QEMU's ``-qmp`` behind it.
        pid: process id of the QEMU, where it cannot be found by itself.
        timeout: how long QEMU may take for an answer, seconds; None for 30.

    Raises:
        RequestError: it is not a unix socket.
        MachineError: no QEMU answers, or its guest cannot be saved this way.
        HostError: its memory cannot be reached; says which right is missing.
    """
    from parallel_fixedram.machines.qemu.machine import QemuMachine

    return QemuMachine(qmp_socket(socket_path, os.path.exists), pid=pid, timeout=timeout)


def restore(
    uri: str,
    ram: Mapping[str, str | Destination],
    *,
    channels: int = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    check_digests: bool = False,
    progress: Progress | None = None,
) -> RestoreReport:
    """Fill guest RAM from a mapped-ram file; afterwards it is what the file says, whatever it held before.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        ram: where each block goes, by name: a file in shared memory of exactly its size, made if there is none.
        channels: number of worker processes; more than one is multifd.
        experimental_multifd: lift the rule against fixed-ram with multifd.
        capabilities: further capabilities; those that the file records have to be on here.
        profile: whose rules the gate follows.
        check_digests: hold every page against its digest; heads and bitmaps are checked in any case.
        progress: ``progress(phase, done, total)`` in bytes.

    Raises:
        CapabilityError: the gate refuses, or the file records other capabilities than are on here.
        RequestError: a block the file has not, or a destination of another size. Nothing was touched.
        FormatError: not a complete mapped-ram file. Nothing was touched.
        ContentsDiffer: a page does not match its digest.
        HostError: I/O or memory; files made for the restore are gone again.
    """
    profile = choice(Profile, profile, "profile")
    on = capabilities_for_restore(
        channels=channels, extra=capabilities, profile=profile, experimental=experimental_multifd
    )
    destinations = {idstr: Destination(path=to) if isinstance(to, str) else to for idstr, to in ram.items()}
    with open_image(uri) as image:
        image.refuse_absent(destinations)  # no capability would help
        validate_recorded(image.file.configuration.capabilities, on, profile)
        return _restore.restore(image, destinations, channels=channels, check_digests=check_digests, progress=progress)


def verify(
    uri: str,
    *,
    quick: bool = False,
    ram: Mapping[str, str] | Sequence[RamFile] = (),
    channels: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a mapped-ram file: its structure, its digests where it carries them, and live RAM on request.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        quick: structure only: no page is read.
        ram: live RAM to compare with, as for ``open_ram``; it has to stand still meanwhile.
        channels: number of workers; None for one a processor, at most 4.
        progress: ``progress(phase, done, total)`` in bytes.

    Returns:
        What was found: ``ok`` is False when anything differs, and ``differences`` name it.

    Raises:
        FormatError: the file contradicts itself.
        RequestError: RAM for a block that the file has not, or of another length.
        HostError: the file or RAM cannot be read.
    """
    with ExitStack() as stack:
        image = stack.enter_context(open_image(uri))
        blocks: dict[str, GuestBlock] = {}
        if ram:
            machine = stack.enter_context(open_ram(ram))
            blocks = {each.block.idstr: each for each in machine.guest_blocks()}
        return _verify.verify(
            image, quick=quick, ram=blocks, channels=readers() if channels is None else channels, progress=progress
        )


def diff(uri_a: str, uri_b: str, *, channels: int | None = None, progress: Progress | None = None) -> DiffReport:
    """Find the pages that differ between two mapped-ram files, block by block.

    Args:
        uri_a: one file.
        uri_b: the other.
        channels: number of workers; None for one a processor, at most 4.
        progress: ``progress(phase, done, total)`` in bytes.

    Raises:
        FormatError: a file is not what it should be.
        RequestError: the files have no block in common.
        HostError: a file cannot be read.
    """
    with open_image(uri_a) as a, open_image(uri_b) as b:
        return _compare.diff(a, b, channels=readers() if channels is None else channels, progress=progress)


__all__ = [
    "Destination",
    "GuestProcess",
    "GuestSpec",
    "Image",
    "Progress",
    "RamFile",
    "diff",
    "open_guest",
    "open_image",
    "open_qemu",
    "open_ram",
    "restore",
    "verify",
]
