"""Verify a file by loading it: what a QEMU has loaded is compared with the file, byte by byte, and no guest runs.

::

    QEMU -S, waiting --- loads FILE by itself ---> all of its RAMBlocks <--- compared by our workers ---> FILE
         |                                                                                                 bit 0: zeros
         +--- killed; nothing of it is left

QEMU opens its disks, or overlays on those that the file records, as for any incoming guest: it takes no lock and writes
nothing. Neither happens later, because it never activates them (QEMU migration/migration.c,
process_incoming_migration_bh: ``late-block-activate``). Nor does it announce the guest to a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.disks import with_disks
from parallel_fixedram.boot.fleet import Fleet
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.plan import main_blocks, paused_if
from parallel_fixedram.boot.restore import loaded_by_qemu
from parallel_fixedram.boot.run_folder import new_path
from parallel_fixedram.core.boot_options import DiskChoice
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.host.memory.process_memory import open_process_memory
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.qemu import discovery

KEPT = (
    "some of these pages are zero in the file, and QEMU does not touch pages that are not in the file: there it keeps "
    "its own firmware and tables"
)


def verify_by_loading(
    uri: str,
    command: Sequence[str],
    *,
    quick: bool = False,
    channels: int | None = None,
    disks: DiskChoice | None = None,
    folder: str | None = None,
    observer: Observer = SILENT,
) -> VerifyReport:
    """Have a QEMU load a file, and compare all its RAMBlocks with the file. Its guest never runs, and it is ended.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        command: the QEMU that the guest was saved from. It opens what it names; that guest may be using the disks.
        quick: whether to skip the other checks of pages: their digests, and the places of zero pages.
        channels: number of workers; None for one per processor, at most 4.
        disks: which disks the guest gets.
        folder: where socket and log go; must not exist, and is removed afterwards. None for a new one.
        observer: told about progress.

    Returns:
        The result: ``ok`` is False if anything differs, and ``differences`` lists it.

    Raises:
        RequestError: the file has no device state, or it or its disks do not fit the command line.
        FormatError: it is not a complete mapped-ram file.
        ContentsDiffer: heads or bitmaps do not match their digests, or a disk was written to since. Nothing was
            started.
        MachineError: QEMU does not start, or cannot load the file.
        HostError: I/O failed, there is not enough memory, or we may not read QEMU's memory.
    """
    folder = folder or new_path()
    line = paused_if(CommandLine.parse(command), True)
    with ExitStack() as stack:
        image = stack.enter_context(open_image(uri))
        main_blocks(image, line)
        boot = with_disks(loaded_by_qemu(image, line, 1), image, disks, folder)
        fleet = stack.enter_context(Fleet(boot.commands, folder, disks=boot.disks))
        _load(fleet, image, boot.source, observer)
        report = verify(
            image,
            quick=quick,
            ram=_memory(image, fleet, stack),
            loaded_by=line.arguments[0],
            channels=readers() if channels is None else channels,
            observer=observer,
        )
        _require_standstill(fleet)
        return replace(report, warnings=(*report.warnings, *([KEPT] if _has_kept(image, report) else [])))


def _load(fleet: Fleet, image: Image, source: IncomingStream, observer: Observer) -> None:
    fleet.connect(image.file)
    observer.phase("load")
    fleet.load(replace(source, aside=True))
    _require_standstill(fleet)


def _memory(image: Image, fleet: Fleet, stack: ExitStack) -> dict[str, GuestBlock]:
    """All stored blocks, as QEMU has them now."""
    (monitor,) = fleet.monitors
    (pid,) = fleet.pids
    found = {}
    for block in discovery.ramblocks(monitor):
        if block.idstr in {saved.block.idstr for saved in image.blocks}:
            try:
                source = open_process_memory(pid, block.address, block.used_length).source
            except HostError as error:
                raise HostError(f"block {block.idstr!r}: {error.message}", hint=error.hint) from error
            stack.callback(source.close)
            found[block.idstr] = GuestBlock(block=block.ramblock(), source=source, main=block.main)
    return found


def _require_standstill(fleet: Fleet) -> None:
    """Refuse a guest that runs, because somebody else has let it go on: its memory proves nothing.

    Raises:
        MachineError: it runs.
    """
    (report,) = fleet.go_on(run=False)
    if report.status in discovery.RUNNING:
        raise MachineError(f"somebody let the loaded guest go on: it is {report.status!r}")


def _has_kept(image: Image, report: VerifyReport) -> bool:
    """Whether a difference begins at a page that is not in the file."""
    return any(
        each.idstr is not None and each.first_page is not None and not image.bitmap(each.idstr).test(each.first_page)
        for each in report.differences
    )
