"""Ending: what a file has besides its pages, written when all pages are there.

::

    heads and file bitmaps | pages | device sections, end mark | trailer with page digests | clone stream
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import FormatError, MachineError
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.engine.pages.digest import write_digests, write_trailer
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.libvirt_image import head_ranges
from parallel_fixedram.format.trailer import TrailerLayout
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.image.clone_stream import CloneStream


class Ending:
    """Everything but the pages.

    Args:
        layout: where everything goes.
        guest_blocks: the machine's blocks, in the same order.
        ledger: which pages are in the file, and their digests.
        state: device sections; empty if there are none.
        disks: those that belong to the instant.

    Raises:
        MachineError: the device state is malformed.
    """

    def __init__(
        self,
        layout: FileLayout,
        guest_blocks: Sequence[GuestBlock],
        ledger: Ledger,
        state: bytes,
        disks: Sequence[Disk],
    ) -> None:
        try:
            self._tail = layout.tail(state)
        except FormatError as error:
            raise MachineError(f"the device state is malformed: {error.message}") from error
        self._layout = layout
        self._ledger = ledger
        self._clone: CloneStream | None = None
        small = [number for number, each in enumerate(guest_blocks) if not each.main]
        if state and small:
            self._clone = CloneStream(
                machine=layout.machine,
                page_bits=layout.page_bits,
                blocks=[layout.blocks[number] for number in small],
                present=[ledger.present[number] for number in small],
                device_sections=state,
            )
        self._trailer = TrailerLayout.plan(
            base=layout.base,
            stream_end=layout.ram_end + len(self._tail),
            blocks=[saved.block for saved in layout.blocks],
            clone_end=self._clone.end if self._clone else None,
            disks=disks,
            head=head_ranges(layout.base) if layout.head else (),
        )

    @property
    def file_length(self) -> int:
        """Bytes of the whole file."""
        return self._trailer.file_length

    def write(self, channel: FileChannel) -> None:
        """Write heads, bitmaps, digests, tail, clone stream and trailer; the pages are in the file already."""
        for offset, data in self._layout.head_pieces():
            channel.write(offset, memoryview(data))
        for saved, present in zip(self._layout.blocks, self._ledger.present, strict=True):
            channel.write(saved.header.bitmap_offset, memoryview(present.to_bytes()))
        write_digests(channel, self._trailer.tables, self._ledger.digests, self._ledger.present)
        channel.write(self._layout.ram_end, memoryview(self._tail))
        if self._clone:
            self._clone.write(channel, channel, self._trailer.clone_offset)
        write_trailer(channel, self._trailer, self._layout.blocks)
