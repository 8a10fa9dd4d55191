"""``restore_guest``: start a QEMU with the RAM and device state in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.disks import with_disks
from parallel_fixedram.boot.hand_over import HandedOver, hand_over
from parallel_fixedram.boot.plan import (
    Boot,
    check_against_digests,
    clone_stream_in,
    find_clone_stream,
    main_blocks,
    paused_if,
    state_of,
)
from parallel_fixedram.boot.restore import known_blocks, loaded_by_qemu, on_memory
from parallel_fixedram.boot.run_folder import new_path
from parallel_fixedram.core.boot_options import DiskChoice
from parallel_fixedram.core.capabilities import validate_recorded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.boot import BootReport
from parallel_fixedram.core.save_options import Gate
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.memory.shared_memory import SharedMemory
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.restore import Destination, restore

__all__ = ["Boot", "plan_restore", "restore_guest"]

_SHARED = ("shared memory, filled by our workers", True)
_PRIVATE = ("private memory, loaded by QEMU", False)
"""How RAM gets into a guest, and whether we fill it."""


def restore_guest(
    uri: str,
    command: Sequence[str],
    *,
    gate: Gate | None = None,
    shared: bool = False,
    ram: Mapping[str, str] | None = None,
    paused: bool = False,
    check_digests: bool = False,
    disks: DiskChoice | None = None,
    folder: str | None = None,
    observer: Observer = SILENT,
) -> BootReport:
    """Start a QEMU with the RAM and device state in a file.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        command: the QEMU that the guest was saved from: program and arguments.
        gate: as for ``restore``; its channels are multifd channels of QEMU's loader, or our workers.
        shared: whether the guest gets shared memory, filled by our workers; otherwise QEMU loads into its own memory.
        ram: files for the shared memory of some blocks, by name; made with mode 0600. Implies ``shared``.
        paused: whether to keep the guest from running.
        check_digests: whether to check every page against its digest first.
        disks: which disks the guest gets.
        folder: where socket and log go; must not exist. None for a new one.
        observer: told about progress.

    Raises:
        CapabilityError, FormatError, ContentsDiffer: as for ``restore``. Nothing was started.
        RequestError: the file has no device state, or it or its disks do not fit the command line. No guest ran.
        ContentsDiffer: a disk image was written to since. No guest ran.
        MachineError: QEMU does not start, or cannot load the file.
        HostError: I/O failed, or there is not enough memory.
    """
    started = time.perf_counter()
    gate = gate or Gate()
    channels, folder = gate.channels_or_one, folder or new_path()
    with _accepted(uri, command, gate, paused=paused) as (image, line, main):
        if check_digests:
            check_against_digests(image, observer)
        if shared or ram:
            done = _on_shared_memory(
                image, line, main, ram or {}, disks, channels=channels, folder=folder, observer=observer
            )
        else:
            boot = with_disks(loaded_by_qemu(image, line, channels), image, disks, folder)
            done = hand_over(image, boot, folder=folder, observer=observer)
    how, fill = _SHARED if shared or ram else _PRIVATE
    return done.report("restore", image, how, channels=channels, fill=fill, verified=check_digests, started=started)


def _on_shared_memory(
    image: Image,
    line: CommandLine,
    main: Sequence[SavedBlock],
    names: Mapping[str, str],
    disks: DiskChoice | None,
    *,
    channels: int,
    folder: str,
    observer: Observer,
) -> HandedOver:
    """Start a QEMU on shared memory, which our workers fill meanwhile; blocks without a file are anonymous."""
    lengths = {saved.block.idstr: saved.block.used_length for saved in main}
    with ExitStack() as stack:
        memory = stack.enter_context(SharedMemory(lengths, known_blocks(names, lengths)))
        source = find_clone_stream(image, main, stack)
        anonymous = lengths.keys() - names.keys()
        boot = on_memory(line, memory.paths, main, source, anonymous, memory.descriptors, names=names)
        into = {idstr: Destination(path=path) for idstr, path in memory.paths.items()}
        return hand_over(
            image,
            with_disks(boot, image, disks, folder),
            folder=folder,
            observer=observer,
            meanwhile=lambda: restore(image, into, channels=channels, observer=observer),
            together_with=memory.keep,
        )


def plan_restore(
    uri: str,
    command: Sequence[str],
    *,
    gate: Gate | None = None,
    ram: Mapping[str, str] | None = None,
    paused: bool = False,
    disks: DiskChoice | None = None,
    folder: str | None = None,
) -> Boot:
    """What ``restore_guest`` would start, for those who prefer to do it by hand; nothing is touched.

    Args:
        uri: as for ``restore_guest``.
        command: as for ``restore_guest``.
        gate: as for ``restore_guest``.
        ram: as for ``restore_guest``, but for all main blocks; the files have to be filled before.
        paused: as for ``restore_guest``.
        disks: as for ``restore_guest``; overlays have to be made before.
        folder: as for ``restore_guest``.

    Raises:
        CapabilityError, ContentsDiffer: as for ``restore_guest``.
        RequestError: as for ``restore_guest``; or ``ram`` lacks a main block.
        FormatError: it is not a complete mapped-ram file.
    """
    gate = gate or Gate()
    channels, folder = gate.channels_or_one, folder or new_path()
    with _accepted(uri, command, gate, paused=paused) as (image, line, main):
        if not ram:
            return with_disks(loaded_by_qemu(image, line, channels), image, disks, folder)
        for saved in main:
            if saved.block.idstr not in ram:
                raise RequestError(
                    f"main block {saved.block.idstr!r} has no file, and nobody would fill anonymous memory",
                    hint=f"give it one with --ram {saved.block.idstr}=PATH",
                )
        paths = {idstr: os.path.abspath(path) for idstr, path in ram.items()}
        boot = replace(on_memory(line, paths, main, clone_stream_in(image, main)), state=state_of(image))
        return with_disks(boot, image, disks, folder)


@contextmanager
def _accepted(
    uri: str, command: Sequence[str], gate: Gate, *, paused: bool
) -> Iterator[tuple[Image, CommandLine, list[SavedBlock]]]:
    """The open file, the command line and the main blocks, after all checks that may refuse them."""
    on = gate.decided_for_restore()
    line = paused_if(CommandLine.parse(command), paused)
    with open_image(uri) as image:
        image.refuse_absent()  # before the capabilities, because none would help
        validate_recorded(image.file.configuration.capabilities, on, gate.profile)
        yield image, line, main_blocks(image, line)
