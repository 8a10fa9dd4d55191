"""``verify``: does a file match its digests and, on request, live RAM?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.image import verify as checks
from parallel_fixedram.image.image import open_image
from parallel_fixedram.machines.ram_files import RamFile
from parallel_fixedram.verbs.open import open_ram


def verify(
    uri: str,
    *,
    quick: bool = False,
    ram: Mapping[str, str] | Sequence[RamFile] = (),
    channels: int | None = None,
    observer: Observer = SILENT,
) -> VerifyReport:
    """Check a mapped-ram file: its structure, its digests if it has any, and on request against live RAM.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        quick: structure only; no page is read.
        ram: live RAM to compare with, as for ``open_ram``; nobody may write to it meanwhile.
        channels: number of workers; None for one per processor, at most 4.
        observer: told about progress.

    Returns:
        The result: ``ok`` is False if anything differs, and ``differences`` lists it.

    Raises:
        FormatError: the file contradicts itself.
        RequestError: the file does not have a block that RAM is given for, or has it with another length.
        HostError: the file or RAM cannot be read.
    """
    with ExitStack() as stack:
        image = stack.enter_context(open_image(uri))
        blocks: dict[str, GuestBlock] = {}
        if ram:
            machine = stack.enter_context(open_ram(ram))
            blocks = {each.block.idstr: each for each in machine.guest_blocks()}
        return checks.verify(
            image, quick=quick, ram=blocks, channels=readers() if channels is None else channels, observer=observer
        )
