"""What the package does, put together: the gate, a machine, the engine.

The one place where guests and engine meet. The command line calls these functions, and so may any program: each takes
plain values, returns a report from ``core.report``, and raises only the errors of ``core.errors``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.capabilities import (
    capabilities_for_restore,
    capabilities_for_save,
    validate_recorded,
)
from parallel_fixedram.core.choice import CANDIDATES, DirectIO
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.profiles import TABLES, Profile
from parallel_fixedram.core.protocols import GuestBlock, Machine
from parallel_fixedram.core.qmp_address import qmp_socket
from parallel_fixedram.core.reports.diff import DiffReport
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.core.uri import parse_uri
from parallel_fixedram.core.words import choice
from parallel_fixedram.engine.tuning.save_options import Cache, Durability, SaveOptions
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.engine.workers.progress import Progress, Trace
from parallel_fixedram.host.files.direct_channel import DEPTH
from parallel_fixedram.host.files.publish import check_target
from parallel_fixedram.image import compare as _compare
from parallel_fixedram.image import restore as _restore
from parallel_fixedram.image import verify as _verify
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.restore import Destination
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_files import RamFile, RamFiles
from parallel_fixedram.verbs import plan_save as _plan_save
from parallel_fixedram.verbs import save as _save

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.machine import QemuMachine


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


def save(
    machine: Machine | Callable[[], Machine],
    uri: str,
    *,
    channels: int | None = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    direct_io: DirectIO | str = DirectIO.AUTO,
    gap_pages: int | None = None,
    shard_pages: int | None = None,
    queue_depth: int | None = None,
    calibrate: bool = False,
    live: bool = False,
    max_rounds: int = 16,
    overwrite: bool = False,
    durability: Durability | str = Durability.FULL,
    cache: Cache | str = Cache.KEEP,
    progress: Progress | None = None,
    trace: Trace | None = None,
) -> SaveReport:
    """Save a machine's RAM into a mapped-ram file with parallel workers.

    Args:
        machine: what to save; or what opens it, called only after the gate agreed, and then closed here.
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        channels: number of worker processes; more than one is multifd. None to choose as many as pay, which is one
            where the gate forbids more.
        experimental_multifd: lift the rule against fixed-ram with multifd.
        capabilities: further capabilities for the gate.
        profile: whose rules the gate follows.
        direct_io: ``on``, ``off`` or ``auto``: whether pages bypass the page cache.
        gap_pages: gaps of up to so many pages between two runs are written along; None to choose it.
        shard_pages: about how many pages a shard has; None to choose it.
        queue_depth: direct writes that each worker has in flight, 0 for one by one; None for as many as pay.
        calibrate: measure what writes cost in that folder, even if it is known from earlier.
        live: let the machine run while what it dirties is saved in rounds; only the last one has it stopped.
        max_rounds: most rounds of a live save, the stopped one included.
        overwrite: replace an existing file, once the new one is complete.
        durability: ``full`` or ``none``: whether the file has to survive a power cut when this returns.
        cache: ``keep`` or ``drop``: whether the file may stay in the page cache afterwards.
        progress: ``progress(phase, done, total)`` in bytes.
        trace: told who wrote which part of the file when.

    Returns:
        What was done; bytes and seconds are in the report's fields.

    Raises:
        CapabilityError: the gate refuses, or the target cannot seek. Nothing was touched.
        RequestError: impossible as asked, or the file exists. Nothing was touched.
        MachineError: the machine did not stop or went away.
        HostError: I/O or memory, ENOSPC among them; a WorkerError if no worker survived. No file is left.
        DurabilityError: the file is published, but may not survive a power cut.
    """
    target = parse_uri(uri)
    gate = _SaveGate(dict(capabilities or {}), choice(Profile, profile, "profile"), experimental_multifd)
    options = _save_options(
        gate,
        channels=channels,
        direct_io=choice(DirectIO, direct_io, "direct_io"),
        gap_pages=gap_pages,
        shard_pages=shard_pages,
        queue_depth=queue_depth,
        calibrate=calibrate,
        overwrite=overwrite,
        durability=choice(Durability, durability, "durability"),
        cache=choice(Cache, cache, "cache"),
        rounds=(max_rounds, live),
        offset=target.offset,
    )
    check_target(target.path, overwrite=overwrite)
    notes = _link_notes(target.path)
    with ExitStack() as stack:
        if callable(machine):
            machine = machine()
            stack.callback(machine.close)
        if isinstance(machine, RamFiles) and machine.is_memory(target.path):
            raise RequestError(f"{target.path!r} is the RAM that is to be saved")
        report = _save.save(machine, target.path, options, dirty=machine.dirty_source(), progress=progress, trace=trace)
        return replace(report, capabilities=gate.decided(report.channels), notes=(*report.notes, *notes))


def _link_notes(path: str) -> tuple[str, ...]:
    """What has to be said of a target that is a symbolic link, which is replaced itself."""
    try:
        leads = os.readlink(path)
    except OSError:
        return ()
    return (f"{path!r} was a symbolic link to {leads!r}; it is the new file now, and what it led to is as it was",)


def plan(
    machine: Machine | Callable[[], Machine],
    uri: str,
    *,
    channels: int | None = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    direct_io: DirectIO | str = DirectIO.AUTO,
    gap_pages: int | None = None,
    shard_pages: int | None = None,
    calibrate: bool = False,
) -> PlanReport:
    """Say how ``save`` would write, and how long that would take, without stopping the machine or making a file.

    Takes and raises what ``save`` does; a file of that name may exist.
    """
    target = parse_uri(uri)
    gate = _SaveGate(dict(capabilities or {}), choice(Profile, profile, "profile"), experimental_multifd)
    options = _save_options(
        gate,
        channels=channels,
        direct_io=choice(DirectIO, direct_io, "direct_io"),
        gap_pages=gap_pages,
        shard_pages=shard_pages,
        calibrate=calibrate,
        offset=target.offset,
    )
    check_target(target.path, overwrite=True)
    with ExitStack() as stack:
        if callable(machine):
            machine = machine()
            stack.callback(machine.close)
        return _plan_save.plan_save(machine, target.path, options)


@dataclass(frozen=True, slots=True)
class _SaveGate:
    """The capability gate of one save."""

    extra: Mapping[str, bool]
    profile: Profile
    experimental: bool

    def decided(self, channels: int) -> dict[str, bool]:
        """The capabilities of a save with so many channels.

        Raises:
            CapabilityError: they cannot be together.
        """
        on = capabilities_for_save(
            channels=channels, extra=self.extra, profile=self.profile, experimental=self.experimental
        )
        asked = {TABLES[self.profile].canonical(name) or name: False for name in self.extra}
        return {**asked, **dict.fromkeys(on, True)}

    def most_channels(self) -> tuple[int, str]:
        """Most channels that may be chosen, and what forbids more."""
        self.decided(1)
        try:
            self.decided(2)
        except RequestError as error:
            return 1, f"more is multifd: {error.message}"
        return max(CANDIDATES), ""


def _save_options(
    gate: _SaveGate,
    *,
    channels: int | None,
    gap_pages: int | None,
    shard_pages: int | None,
    queue_depth: int | None = None,
    rounds: tuple[int, bool] = (1, False),
    **others: Any,
) -> SaveOptions:
    """Options of a save that the gate lets pass.

    Raises:
        CapabilityError: it does not.
        RequestError: a number out of its range.
    """
    most, why = gate.most_channels() if channels is None else (channels, "")
    capabilities = gate.decided(most)
    max_rounds, live = rounds
    for number, least, what in (
        (max_rounds, 1, "rounds"),
        (gap_pages, 0, "gap pages"),
        (shard_pages, 1, "shard pages"),
        (queue_depth, 0, "writes in flight"),
    ):
        if number is not None and number < least:
            raise RequestError(f"{number} {what}, at least {least} is needed")
    return SaveOptions(
        channels=channels,
        most_channels=most,
        why_most=why,
        gap_pages=gap_pages,
        shard_pages=shard_pages,
        queue_depth=DEPTH if queue_depth is None else queue_depth,
        max_rounds=max_rounds if live else 1,
        capabilities=capabilities,
        **others,
    )


def restore(
    uri: str,
    ram: Mapping[str, str | Destination],
    *,
    channels: int = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    check_digests: bool = False,
    observer: Observer = SILENT,
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
        observer: hears how far it is.

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
        return _restore.restore(image, destinations, channels=channels, check_digests=check_digests, observer=observer)


def verify(
    uri: str,
    *,
    quick: bool = False,
    ram: Mapping[str, str] | Sequence[RamFile] = (),
    channels: int | None = None,
    observer: Observer = SILENT,
) -> VerifyReport:
    """Check a mapped-ram file: its structure, its digests where it carries them, and live RAM on request.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        quick: structure only: no page is read.
        ram: live RAM to compare with, as for ``open_ram``; it has to stand still meanwhile.
        channels: number of workers; None for one a processor, at most 4.
        observer: hears how far it is.

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
            image, quick=quick, ram=blocks, channels=readers() if channels is None else channels, observer=observer
        )


def diff(uri_a: str, uri_b: str, *, channels: int | None = None, observer: Observer = SILENT) -> DiffReport:
    """Find the pages that differ between two mapped-ram files, block by block.

    Args:
        uri_a: one file.
        uri_b: the other.
        channels: number of workers; None for one a processor, at most 4.
        observer: hears how far it is.

    Raises:
        FormatError: a file is not what it should be.
        RequestError: the files have no block in common.
        HostError: a file cannot be read.
    """
    with open_image(uri_a) as a, open_image(uri_b) as b:
        return _compare.diff(a, b, channels=readers() if channels is None else channels, observer=observer)


__all__ = [
    "Cache",
    "Destination",
    "DirectIO",
    "Durability",
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
    "plan",
    "restore",
    "save",
    "verify",
]
