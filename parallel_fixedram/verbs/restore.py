"""``restore``: guest RAM from a mapped-ram file."""

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
    """Fill guest RAM from a mapped-ram file; afterwards it is what the file says, whatever it held before.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        ram: where each block goes, by name: a file in shared memory of exactly its size, made if there is none.
        gate: channels and capabilities, of which those that the file records have to be on; one channel if not given.
        check_digests: check every page against its digest; heads and bitmaps are checked in any case.
        observer: hears how far it is.

    Raises:
        CapabilityError: the gate refuses, or the file records other capabilities than are on here.
        RequestError: a block the file has not, or a destination of another size. Nothing was touched.
        FormatError: not a complete mapped-ram file. Nothing was touched.
        ContentsDiffer: a page does not match its digest.
        HostError: I/O or memory; files made for the restore are gone again.
    """
    gate = gate or Gate()
    on, channels = gate.decided_for_restore(), gate.channels_or_one
    destinations = {idstr: Destination(path=to) if isinstance(to, str) else to for idstr, to in ram.items()}
    with open_image(uri) as image:
        image.refuse_absent(destinations)  # no capability would help
        validate_recorded(image.file.configuration.capabilities, on, gate.profile)
        return into_ram.restore(image, destinations, channels=channels, check_digests=check_digests, observer=observer)
