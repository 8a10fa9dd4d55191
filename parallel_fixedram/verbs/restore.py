"""``restore``: fill guest RAM from a mapped-ram file."""

from __future__ import annotations

from collections.abc import Mapping

from parallel_fixedram.core.capabilities import validate_recorded
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.save_options import Gate
from parallel_fixedram.image import restore as into_ram
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.restore import Destination

__all__ = ["Destination", "restore"]


def restore(
    uri: str,
    ram: Mapping[str, str | Destination],
    *,
    gate: Gate | None = None,
    check_digests: bool = False,
    observer: Observer = SILENT,
) -> RestoreReport:
    """Fill guest RAM from a mapped-ram file, whatever it contained before.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        ram: where each block goes, by name: a file in shared memory of exactly its size, made if it does not exist.
        gate: channels and capabilities; those that the file records have to be on. None for one channel.
        check_digests: whether to check every page against its digest; heads and bitmaps are always checked.
        observer: told about progress.

    Raises:
        CapabilityError: the gate refuses, or the file records other capabilities than are on here.
        RequestError: the file does not have a block, or a destination has another size. Nothing was touched.
        FormatError: it is not a complete mapped-ram file. Nothing was touched.
        ContentsDiffer: a page does not match its digest.
        HostError: I/O failed, or there is not enough memory; files made for the restore are removed.
    """
    gate = gate or Gate()
    on, channels = gate.decided_for_restore(), gate.channels_or_one
    destinations = {idstr: Destination(path=to) if isinstance(to, str) else to for idstr, to in ram.items()}
    with open_image(uri) as image:
        image.refuse_absent(destinations)  # before the capabilities, because none would help
        validate_recorded(image.file.configuration.capabilities, on, gate.profile)
        return into_ram.restore(image, destinations, channels=channels, check_digests=check_digests, observer=observer)
