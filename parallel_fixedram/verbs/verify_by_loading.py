"""Verify a file by loading it: what a QEMU makes of it is compared with the file, byte by byte, and no guest runs.

::

    QEMU -S, waiting --- loads FILE by itself ---> all of its RAMBlocks <--- compared by our workers ---> FILE
         |                                                                                                 bit 0: zeros
         +--- killed; nothing of it is left

QEMU opens its disks, or overlays on those that the file records, as it does for any incoming guest: no lock is taken,
nothing is written, and neither happens later, because it never activates them (QEMU migration/migration.c,
process_incoming_migration_bh: ``late-block-activate``). It announces no guest to a network either.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.disks import with_disks
from parallel_fixedram.boot.fleet import Fleet
from parallel_fixedram.boot.incoming import Source
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
    "some of these pages are zero in the file, and QEMU leaves a page that the file does not have as it was: what it "
    "put into firmware and tables of its own is still there"
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
    """Have a QEMU load a file, and check every RAMBlock of it against the file; its guest never runs, and it is ended.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        command: the QEMU that the guest was saved from. What it names is opened; disks may be in use by that guest.
        quick: read no page for anything but that: no digests, no places of zero pages.
        channels: number of workers; None for one a processor, at most 4.
        disks: what its disks are.
        folder: where socket and log go; must not exist, and is gone afterwards. None for a new one.
        observer: hears how far it is.

    Returns:
        What was found: ``ok`` is False when anything differs, and ``differences`` name it.

    Raises:
        RequestError: the file has no device state, or it or its disks do not fit the command line.
        FormatError: not a complete mapped-ram file.
        ContentsDiffer: heads or bitmaps do not match their digests, or a disk was written since. Nothing was started.
        MachineError: QEMU does not start, or cannot load the file.
        HostError: I/O or memory, or QEMU's memory may not be read.
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


def _load(fleet: Fleet, image: Image, source: Source, observer: Observer) -> None:
    fleet.connect(image.file)
    observer.phase("load")
    fleet.load(replace(source, aside=True))
    _require_standstill(fleet)


def _memory(image: Image, fleet: Fleet, stack: ExitStack) -> dict[str, GuestBlock]:
    """Every stored block as the QEMU has it now."""
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
    """Refuse a guest that runs, which somebody else would have had to let go: its memory says nothing.

    Raises:
        MachineError: it runs.
    """
    (report,) = fleet.go_on(run=False)
    if report.status in discovery.RUNNING:
        raise MachineError(f"the guest that was to be inspected is {report.status!r}")


def _has_kept(image: Image, report: VerifyReport) -> bool:
    """Whether a difference begins at a page that the file has not."""
    return any(
        each.idstr is not None and each.first_page is not None and not image.bitmap(each.idstr).test(each.first_page)
        for each in report.differences
    )
