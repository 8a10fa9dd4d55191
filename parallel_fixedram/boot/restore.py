"""Restore a whole guest: a QEMU with the RAM and device state of a file."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from parallel_fixedram.boot.command_line import CommandLine, MemoryFile
from parallel_fixedram.boot.fleet import Fleet
from parallel_fixedram.boot.incoming import Source
from parallel_fixedram.boot.plan import (
    INCOMING,
    Boot,
    clone_stream_in,
    find_clone_stream,
    hold_against_digests,
    main_blocks,
    paused_if,
    state_of,
)
from parallel_fixedram.core.capabilities import capabilities_for_restore, validate_recorded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.profiles import Profile
from parallel_fixedram.core.reports.boot import BootReport, BootSeconds
from parallel_fixedram.core.words import choice
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.files.page_cache import is_cold, takes_direct_io
from parallel_fixedram.host.memory.shared_memory import SharedMemory
from parallel_fixedram.host.processes import signals
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.restore import Destination, restore

CACHE_SAMPLES = 64
"""Pages of a file that are looked at to tell whether it is in the page cache."""


def restore_guest(
    uri: str,
    command: Sequence[str],
    *,
    channels: int = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    shared: bool = False,
    ram: Mapping[str, str] | None = None,
    paused: bool = False,
    check_digests: bool = False,
    folder: str | None = None,
    observer: Observer = SILENT,
) -> BootReport:
    """Start a QEMU with the RAM and device state of a file.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        command: the QEMU that the guest was saved from: program and arguments.
        channels: multifd channels of QEMU's loader, or number of our workers; more than one is multifd.
        experimental_multifd: lift the rule against fixed-ram with multifd.
        capabilities: further capabilities; those that the file records have to be on here.
        profile: whose rules the gate follows.
        shared: give the guest shared memory, filled by our workers; otherwise QEMU loads into memory of its own.
        ram: files for the shared memory of some blocks, by name; made with mode 0600. Implies ``shared``.
        paused: do not let the guest run.
        check_digests: hold every page against its digest first.
        folder: where socket and log go; must not exist. None for a new one.
        observer: hears how far it is.

    Raises:
        CapabilityError: the gate refuses. Nothing was started.
        RequestError: the file has no device state, or does not fit the command line. No guest ran.
        FormatError: not a complete mapped-ram file. Nothing was started.
        ContentsDiffer: a page does not match its digest. Nothing was started.
        MachineError: QEMU does not start, or cannot load the file.
        HostError: I/O or memory.
    """
    started = time.perf_counter()
    gate = _Gate(channels, experimental_multifd, capabilities, profile)
    with ExitStack() as stack:
        image, line, main = stack.enter_context(_accepted(uri, command, gate, paused=paused))
        if check_digests:
            hold_against_digests(image, observer)
        memory: SharedMemory | None = None
        if shared or ram:
            lengths = {saved.block.idstr: saved.block.used_length for saved in main}
            memory = stack.enter_context(SharedMemory(lengths, _known_blocks(ram or {}, lengths)))
            source = find_clone_stream(image, main, stack)
            anonymous = lengths.keys() - (ram or {}).keys()
            boot = _on_memory(line, memory.paths, main, source, anonymous, memory.descriptors, names=ram or {})
        else:
            boot = loaded_by_qemu(image, line, channels)
        fleet = stack.enter_context(Fleet(boot.commands, folder, descriptors=boot.descriptors))
        fill_seconds = 0.0
        if memory:  # while QEMU starts
            destinations = {idstr: Destination(path=path) for idstr, path in memory.paths.items()}
            fill_seconds = restore(image, destinations, channels=channels, observer=observer).seconds.total
        fleet.connect(image.file)
        observer.phase("load")
        fleet.load(boot.source)
        guests = fleet.go_on(run=not line.paused)
        with signals.held(), memory.keep() if memory else nullcontext():  # guests and their memory stay together
            fleet.let_go(image.path)
    return BootReport(
        verb="restore",
        file=image.path,
        how="shared memory, filled by our workers" if memory else "private memory, loaded by QEMU",
        channels=channels,
        direct_io=boot.source.direct_io,
        guests=guests,
        changes=tuple(boot.changes),
        verified=check_digests,
        seconds=BootSeconds(
            total=time.perf_counter() - started,
            fill=fill_seconds,
            start=fleet.start_seconds,
            load=fleet.load_seconds,
        ),
    )


def plan_restore(
    uri: str,
    command: Sequence[str],
    *,
    channels: int = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    ram: Mapping[str, str] | None = None,
    paused: bool = False,
) -> Boot:
    """What ``restore_guest`` would start, for somebody who would rather do it by hand; nothing is touched.

    Args:
        uri: as for ``restore_guest``.
        command: as for ``restore_guest``.
        channels: as for ``restore_guest``.
        experimental_multifd: as for ``restore_guest``.
        capabilities: as for ``restore_guest``.
        profile: as for ``restore_guest``.
        ram: as for ``restore_guest``, but of all main blocks; the files have to be filled before.
        paused: as for ``restore_guest``.

    Raises:
        CapabilityError: as for ``restore_guest``.
        RequestError: as for ``restore_guest``; or a main block is given no file, the others being given one.
        FormatError: not a complete mapped-ram file.
    """
    gate = _Gate(channels, experimental_multifd, capabilities, profile)
    with _accepted(uri, command, gate, paused=paused) as (image, line, main):
        if not ram:
            return loaded_by_qemu(image, line, channels)
        for saved in main:
            if saved.block.idstr not in ram:
                raise RequestError(
                    f"main block {saved.block.idstr!r} is given no file, and nobody would fill anonymous memory",
                    hint=f"--ram {saved.block.idstr}=PATH names a file",
                )
        paths = {idstr: os.path.abspath(path) for idstr, path in ram.items()}
        return replace(_on_memory(line, paths, main, clone_stream_in(image, main)), state=state_of(image))


class _Gate(NamedTuple):
    """What the capability gate is asked."""

    channels: int
    experimental_multifd: bool
    capabilities: Mapping[str, bool] | None
    profile: Profile | str


@contextmanager
def _accepted(
    uri: str, command: Sequence[str], gate: _Gate, *, paused: bool
) -> Iterator[tuple[Image, CommandLine, list[SavedBlock]]]:
    """The open file, the command line and the main blocks, after everything that may refuse them has agreed."""
    profile = choice(Profile, gate.profile, "profile")
    on = capabilities_for_restore(
        channels=gate.channels, extra=gate.capabilities, profile=profile, experimental=gate.experimental_multifd
    )
    line = paused_if(CommandLine.parse(command), paused)
    with open_image(uri) as image:
        image.refuse_absent()  # no capability would help
        validate_recorded(image.file.configuration.capabilities, on, profile)
        yield image, line, main_blocks(image, line)


def loaded_by_qemu(image: Image, line: CommandLine, channels: int) -> Boot:
    """QEMU loads the whole stream; past the page cache where it would have to wait for the device anyway."""
    source = Source(
        path=os.path.abspath(image.path),
        fd=image.channel.fd,
        offset=image.file.base,
        channels=channels,
        direct_io=channels > 1 and takes_direct_io(image.path) and is_cold(image.channel.fd, _samples(image)),
    )
    return Boot(commands=[[*line.arguments, *INCOMING]], source=source, paused=line.paused, state=state_of(image))


def _samples(image: Image) -> list[int]:
    """File offsets of some of the pages that are there, spread over all of them."""
    found: list[int] = []
    for saved in image.blocks:
        pages = [run.first for run in image.bitmap(saved.block.idstr).ranges()]
        chosen = np.linspace(0, len(pages) - 1, min(CACHE_SAMPLES, len(pages)), dtype=int).tolist()
        found += [saved.page_offset(pages[index]) for index in chosen]
    return found


def _on_memory(
    line: CommandLine,
    paths: Mapping[str, str],
    main: Sequence[SavedBlock],
    source: Source,
    anonymous: Collection[str] = (),
    descriptors: Collection[int] = (),
    *,
    names: Mapping[str, str] | None = None,
) -> Boot:
    """QEMU on shared memory, of which ``names`` says what it will be called; of the file it loads the rest."""
    lengths = {saved.block.idstr: saved.block.used_length for saved in main}
    rewritten = line.with_memory(
        {
            idstr: MemoryFile(
                path=path,
                offset=0,
                size=lengths[idstr],
                shared=True,
                anonymous=idstr in anonymous,
                name=os.path.abspath(name) if (name := (names or {}).get(idstr)) else "",
            )
            for idstr, path in _known_blocks(paths, lengths).items()
        }
    )
    return Boot(
        commands=[[*rewritten.arguments, *INCOMING]],
        source=source,
        changes=rewritten.changes,
        descriptors=descriptors,
        paused=line.paused,
    )


def _known_blocks(paths: Mapping[str, str], main: Collection[str]) -> Mapping[str, str]:
    for idstr in paths:
        if idstr not in main:
            names = ", ".join(map(repr, main))
            raise RequestError(f"block {idstr!r} is no main memory of this guest, which has {names}")
    return paths
