"""Whether pages bypass the page cache, and the channel that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.host.page_cache import dirty_room
from parallel_fixedram.host.publish import PendingFile

SCATTERED_RUN_PAGES = 32
"""Data in runs that are shorter than this on average, 128 KiB, counts as scattered."""
FEW_RUNS = 256
"""So few runs take no time worth a thought, however short they are."""

ROOM_SHARE = 0.8
"""How much of what the page cache can take at once a save counts on: others write, too."""


class DirectIO(StrEnum):
    """Whether pages bypass the page cache."""

    ON = "on"
    """Always; an error where the file system refuses."""
    OFF = "off"
    AUTO = "auto"
    """Where the file system takes it, for it reaches stable storage sooner; but not for scattered data and a live
    save, whose last rounds are scattered, because many small writes reach the page cache sooner than the device; and
    not where a guest waits and the page cache can take all of it."""


@dataclass(frozen=True, slots=True)
class PageChannel:
    """The channel that pages are written to."""

    channel: Channel
    direct: bool
    """Whether it bypasses the page cache."""
    note: str = ""
    """Why it does not, where that was not to be expected."""


def open_page_channel(
    pending: PendingFile, wanted: DirectIO, *, live: bool, waits: bool, data: Sequence[PageBitmap], page_size: int
) -> PageChannel:
    """Decide, and open the file a second time if need be.

    Args:
        pending: the file.
        wanted: what the caller asks for.
        live: whether the guest runs while its pages are saved in rounds.
        waits: whether it runs until then, and stands still meanwhile.
        data: which pages may hold something, one bitmap a block.
        page_size: of those pages, bytes.

    Raises:
        HostError: direct I/O is asked for and refused by the file system.
    """
    pages = sum(bitmap.count() for bitmap in data)
    buffered = live or _is_scattered(data, pages) or (waits and pages * page_size <= ROOM_SHARE * dirty_room())
    if wanted is DirectIO.OFF or (wanted is DirectIO.AUTO and buffered):
        return PageChannel(pending.channel, direct=False)
    if channel := pending.open_direct():
        return PageChannel(channel, direct=True)
    refusal = f"the file system of {pending.path!r} refuses direct I/O"
    if wanted is DirectIO.ON:
        raise HostError(refusal, hint="--direct-io auto falls back to buffered writes")
    return PageChannel(pending.channel, direct=False, note=f"{refusal}: pages were written through the page cache")


def _is_scattered(data: Sequence[PageBitmap], pages: int) -> bool:
    """Whether the data lies in short runs, which the page cache takes many times faster than the device."""
    runs = sum(bitmap.count_runs() for bitmap in data)
    return runs > FEW_RUNS and pages < runs * SCATTERED_RUN_PAGES
