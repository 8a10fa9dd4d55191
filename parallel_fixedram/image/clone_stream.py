"""The clone stream: what a QEMU loads if its main memory is mapped directly from a file's page arrays.

It is a mapped-ram stream of its own, with all blocks except main memory, and the same device sections. Our files have
one in the trailer; for other files it is composed in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.image.image import Image

_PIECE_PAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneStream:
    """A clone stream to be written.

    Attributes:
        machine: name for the configuration section.
        page_bits: target page bits for the configuration section.
        blocks: the small blocks, with the places of their pages in the file.
        present: which of their pages are in the file.
        device_sections: whole sections, without an end mark.
    """

    machine: str
    page_bits: int | None
    blocks: Sequence[SavedBlock]
    present: Sequence[PageBitmap]
    device_sections: bytes

    def layout(self, base: int) -> FileLayout:
        """Where everything goes in a stream that starts at ``base``."""
        blocks = [saved.block for saved in self.blocks]
        return FileLayout.plan(self.machine, blocks, base, page_bits=self.page_bits, alignment=TARGET_PAGE_SIZE)

    def end(self, base: int) -> int:
        """Where a stream that starts at ``base`` ends."""
        layout = self.layout(base)
        return layout.ram_end + len(layout.tail(self.device_sections))

    def write(self, source: Channel, target: Channel, base: int) -> None:
        """Write the stream to ``target`` at ``base``; pages are read from ``source``."""
        layout = self.layout(base)
        for offset, data in layout.head_pieces():
            target.write(offset, memoryview(data))
        for saved, present, place in zip(self.blocks, self.present, layout.blocks, strict=True):
            target.write(place.header.bitmap_offset, memoryview(present.to_bytes()))
            _copy_pages(source, saved, present, target, place)
        target.write(layout.ram_end, memoryview(layout.tail(self.device_sections)))


def require_device_state(image: Image) -> None:
    """Refuse a file of RAM alone.

    Raises:
        RequestError: it has no device sections.
    """
    if not image.file.devices:
        raise RequestError(
            f"{image.path!r} has no device state, so no guest can be started from it",
            hint="it was made from RAM alone; save --qmp takes a whole guest",
        )


def clone_stream_of(image: Image, main: Collection[str]) -> CloneStream:
    """The clone stream for an open file.

    Args:
        image: the file.
        main: names of the blocks that will be mapped.

    Raises:
        RequestError: it has no device sections, or no block besides ``main``.
    """
    require_device_state(image)
    small = [saved for saved in image.blocks if saved.block.idstr not in main]
    if not small:
        raise RequestError(f"{image.path!r} has no RAMBlock besides main memory, which every QEMU has")
    return CloneStream(
        machine=image.file.configuration.machine,
        page_bits=image.file.configuration.page_bits,
        blocks=small,
        present=[image.bitmap(saved.block.idstr) for saved in small],
        device_sections=b"".join(image.channel.bytes_at(device.offset, device.length) for device in image.file.devices),
    )


def _copy_pages(source: Channel, saved: SavedBlock, present: PageBitmap, target: Channel, place: SavedBlock) -> None:
    size = saved.block.page_size
    buffer = memoryview(bytearray(_PIECE_PAGES * size))
    for run in present.ranges():
        for first in range(run.first, run.end, _PIECE_PAGES):
            piece = buffer[: min(_PIECE_PAGES, run.end - first) * size]
            source.read(saved.page_offset(first), piece)
            target.write(place.page_offset(first), piece)
