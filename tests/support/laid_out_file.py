"""A file of ours that is put together from layouts, in the order and with the pieces of a save."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash
from support.streamwriter import MIB, PAGE, Block, pages_of

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.trailer import DIGEST_BYTES, Extent, TrailerLayout, pack_extents, uncovered


def digest(data: bytes | bytearray) -> int:
    """XXH3-64."""
    return xxhash.xxh3_64_intdigest(data)


def saved_file(
    *drawn: Block,
    machine: str = RAM_ONLY_MACHINE,
    base: int = 0,
    devices: bytes = b"",
    alignment: int = MIB,
    disks: Sequence[Disk] = (),
) -> bytes:
    """The whole file, with these blocks."""
    blocks = [RAMBlock(idstr=each.name, used_length=len(each.picture) * PAGE) for each in drawn]
    layout = FileLayout.plan(machine, blocks, base, alignment=alignment)
    tail = layout.tail(devices)
    plan = TrailerLayout.plan(base=base, stream_end=layout.ram_end + len(tail), blocks=blocks, disks=disks)
    file = bytearray(plan.file_length)

    def write(offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(file)
        file[offset : offset + len(data)] = data

    for saved, block, table in zip(layout.blocks, drawn, plan.tables, strict=True):
        present = PageBitmap(saved.block.pages)
        for page, letter in enumerate(block.picture):
            if letter != "0":
                write(saved.page_offset(page), pages_of(letter))
                present.words[page // 64] |= present.words.dtype.type(1 << page % 64)
                write(table + page * DIGEST_BYTES, digest(pages_of(letter)).to_bytes(8, "little"))
        write(saved.header.bitmap_offset, present.to_bytes())
    for offset, data in [*layout.head_pieces(), (layout.ram_end, tail), *plan.parts]:
        write(offset, data)
    extents = [Extent(start, end - start, digest(file[start:end]))
               for start, end in uncovered(list(layout.blocks), base, plan.offset)]  # fmt: skip
    write(plan.extents_offset, pack_extents(extents))
    write(plan.footer_offset, plan.pack_footer())
    end = plan.file_length - DIGEST_BYTES
    write(end, digest(file[plan.offset : end]).to_bytes(DIGEST_BYTES, "big"))
    return bytes(file)
