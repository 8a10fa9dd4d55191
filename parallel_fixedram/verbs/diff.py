"""``diff``: pages that differ between two files."""

from __future__ import annotations

from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.diff import DiffReport
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.image import compare
from parallel_fixedram.image.image import open_image


def diff(uri_a: str, uri_b: str, *, channels: int | None = None, observer: Observer = SILENT) -> DiffReport:
    """Find the pages that differ between two mapped-ram files, block by block.

    Args:
        uri_a: one file.
        uri_b: the other.
        channels: number of workers; None for one per processor, at most 4.
        observer: told about progress.

    Raises:
        FormatError: a file is malformed.
        RequestError: the files have no block in common.
        HostError: a file cannot be read.
    """
    with open_image(uri_a) as a, open_image(uri_b) as b:
        return compare.diff(a, b, channels=readers() if channels is None else channels, observer=observer)
