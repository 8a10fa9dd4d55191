"""Draft: a file of ours in the making, from its size to its name.

::

    sized, opened    reserve    pages, by workers    finish: everything else    publish: synced, named
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from parallel_fixedram.core.choice import Choice
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.latency import LatencyCounter
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.save_options import Cache, DirectIO, Publishing, Writing
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.reserve import Reservation
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.channel import FileChannel, ReadBackChannel
from parallel_fixedram.host.files.page_cache import cached_bytes, drop_from_cache
from parallel_fixedram.host.files.publish import PendingFile, copy_prefix
from parallel_fixedram.host.files.space import Space
from parallel_fixedram.image.ending import Ending
from parallel_fixedram.image.image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file that has its final name."""

    file: int
    """Its length in bytes."""
    allocated: int
    """Bytes that it takes on its file system."""
    cached: int | None
    """Bytes of it that were left in the page cache; None if the kernel does not tell."""
    sync_seconds: float
    publish_seconds: float


class Draft:
    """Context manager around a file without its final name, which is removed unless it gets it.

    Args:
        path: its final name.
        layout: where everything goes.
        writing: whether the file has to be written bypassing the page cache.
        publishing: how to give it its name.

    Attributes:
        buffered: the file, through the page cache.
        direct: the file, bypassing the page cache; None if that is not wanted or not possible.

    Raises:
        RequestError: there is such a file, and it may not be replaced.
        HostError: it cannot be made, or cannot be opened for direct I/O although that was requested.
    """

    def __init__(self, path: str, layout: FileLayout, writing: Writing, publishing: Publishing) -> None:
        self._layout = layout
        self._writing = writing
        self._publishing = publishing
        self._pending = PendingFile(path, overwrite=publishing.overwrite)
        self.direct: FileChannel | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            pending = stack.enter_context(self._pending)
            self.buffered = pending.channel
            self._reservation = Reservation(Space(self.buffered), self._layout.blocks)
            if self._layout.base and not self._layout.head:
                copy_prefix(pending.path, self._layout.base, self.buffered)
            pending.set_size(self._layout.ram_end)
            self.direct = self._open_direct()
            if self._writing.time_writes:
                times = LatencyCounter()
                for channel in filter(None, (self.buffered, self.direct)):
                    channel.write_times = times
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pending.__exit__(kind, error, traceback)

    @property
    def folder(self) -> str:
        """The folder that it is in."""
        return self._pending.folder

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._pending.fd

    def reserve(self, guest_blocks: Sequence[GuestBlock], ledger: Ledger, choice: Choice) -> None:
        """Reserve space for the data, except of sources that cannot tell holes, where nearly all might be holes.

        Raises:
            HostError: there is not enough space.
        """
        for number, (each, data) in enumerate(zip(guest_blocks, ledger.data, strict=True)):
            if each.source.tells_holes:
                self._reservation.take(number, data, choice.gap_pages if choice.direct else None)

    def finish(
        self,
        guest_blocks: Sequence[GuestBlock],
        ledger: Ledger,
        state: bytes,
        gap_pages: int,
        disks: Sequence[Disk] = (),
    ) -> None:
        """Write everything but the pages, which are in the file already.

        Args:
            guest_blocks: the machine's blocks, in the file's order.
            ledger: which pages are in the file, and their digests.
            state: device sections.
            gap_pages: gaps of up to this many pages were bridged.
            disks: those that belong to the instant.

        Raises:
            MachineError: the device state is malformed.
            HostError: I/O failed.
        """
        ending = Ending(self._layout, guest_blocks, ledger, state, disks)
        self._pending.set_size(ending.file_length)
        self._reservation.give_back(ledger.present, gap_pages)
        ending.write(ReadBackChannel(self.buffered))

    def image(self) -> Image:
        """The finished file, opened for reading (open_image)."""
        return Image(f"/proc/self/fd/{self.fd}", offset=0 if self._layout.head else self._layout.base)

    def publish(self, observer: Observer) -> PublishedFile:
        """Sync the file, and give it its final name.

        Raises:
            RequestError: the name was taken in the meantime and may not be overwritten.
            HostError: I/O failed, or the file cannot be renamed.
            DurabilityError: the file has its name, but may not survive a power cut.
        """
        started = time.perf_counter()
        if self._publishing.durable:
            observer.phase("sync")
            # before the rename: after a power cut the name must not be there without the contents
            self.buffered.sync()
        synced = time.perf_counter()
        if self._publishing.cache is Cache.DROP:
            drop_from_cache(self.fd)
        cached, status = cached_bytes(self.fd), self.buffered.stat()
        self._pending.publish()
        if self._publishing.durable:
            self._pending.sync_folder()
        return PublishedFile(
            file=status.st_size,
            allocated=status.st_blocks * 512,
            cached=cached,
            sync_seconds=synced - started,
            publish_seconds=time.perf_counter() - synced,
        )

    def _open_direct(self) -> FileChannel | None:
        if self._writing.direct_io is DirectIO.OFF:
            return None
        channel = self._pending.open_direct(self._writing.queue_depth)
        if channel is None and self._writing.direct_io is DirectIO.ON:
            raise HostError(
                f"the file system of {self._pending.path!r} refuses direct I/O",
                hint="--direct-io auto falls back to buffered writes",
            )
        return channel
