"""``restore``: guest RAM from a mapped-ram file."""

from __future__ import annotations

from collections.abc import Mapping

from parallel_fixedram.core.capabilities import capabilities_for_restore, validate_recorded
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.profiles import Profile
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.words import choice
from parallel_fixedram.image import restore as into_ram
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.restore import Destination

__all__ = ["Destination", "restore"]


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
        return into_ram.restore(image, destinations, channels=channels, check_digests=check_digests, observer=observer)
