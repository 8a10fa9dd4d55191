"""FileLayout: where everything lies in a file that we write.

::

    0     head of a container, if it has one, such as libvirt's save image
    base  head of the stream
               | record, header, bitmap of block 0 | zeros | page array of block 0 |   page arrays start at a multiple
               | record, header, bitmap of block 1 | zeros | page array of block 1 |   of 1 MiB
               | ...
               | EOS, footer | ram END | device sections | EOF | VM description | zeros | trailer

The layout is a pure function of machine name and blocks, known before the first page is read. Given block and page
number, anybody can work out the page's place without asking.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from parallel_fixedram.core.bitmap import bitmap_bytes
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.profiles import MAPPED_RAM
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, RAMBlock, check_unique
from parallel_fixedram.core.units import MAX_SIZE, align_up
from parallel_fixedram.format import mapped_ram, stream, vmdesc
from parallel_fixedram.format.device_sections import RAM_SECTION_ID, read_device_sections
from parallel_fixedram.format.mapped_ram import MappedRamHeader, SavedBlock
from parallel_fixedram.format.migration_file import TRAILER_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLayout:
    """Where the parts of the stream are; offsets are absolute file offsets in bytes."""

    base: int
    """Where the stream starts."""
    head: bytes
    """The container's ``base`` bytes in front of the stream; empty if whatever is there stays."""
    machine: str
    target: str
    """Architecture of the guest; empty where there is none."""
    page_bits: int | None
    """Target page bits for the configuration section; None if it has none."""
    blocks: tuple[SavedBlock, ...]
    """The blocks with their places, in the order given."""
    ram_end: int
    """The offset after the last page array, where the stream goes on."""

    @classmethod
    def plan(
        cls,
        machine: str,
        blocks: list[RAMBlock],
        base: int = 0,
        *,
        head: bytes = b"",
        target: str = "",
        page_bits: int | None = None,
        alignment: int = mapped_ram.MAPPED_RAM_FILE_OFFSET_ALIGNMENT,
    ) -> FileLayout:
        """Lay out a file.

        Args:
            machine: name for the configuration section.
            blocks: in the order in which the file lists them.
            base: where the stream starts; any offset.
            head: the container's bytes in front of the stream, which starts where they end.
            target: architecture of the guest, for the VM description.
            page_bits: for the configuration section; None if QEMU writes none for this target.
            alignment: page arrays start at multiples of this many bytes; at least one page.

        Raises:
            RequestError: there are no blocks, two have the same name, or they do not fit in a file; the machine name
                or a page size cannot be stored; both ``head`` and ``base`` are given.
        """
        if head and base:
            raise RequestError(f"the stream cannot start at {base:#x}: the image has {len(head):#x} bytes before it")
        base = base or len(head)
        _check(machine, blocks)
        position = base + len(_head(machine, blocks, page_bits))
        saved = []
        for block in blocks:
            bitmap_offset = position + 1 + len(block.idstr) + 8 + MappedRamHeader.SIZE
            pages_offset = align_up(bitmap_offset + bitmap_bytes(block.pages), alignment)
            header = MappedRamHeader(page_size=block.page_size, bitmap_offset=bitmap_offset, pages_offset=pages_offset)
            saved.append(SavedBlock(block=block, header=header, record_offset=position))
            position = pages_offset + block.used_length
        if position > MAX_SIZE // 2:
            raise RequestError(f"{position} bytes of RAM do not fit in a file")
        return cls(
            base=base,
            head=head,
            machine=machine,
            target=target,
            page_bits=page_bits,
            blocks=tuple(saved),
            ram_end=position,
        )

    def head_pieces(self) -> list[tuple[int, bytes]]:
        """Everything before ``ram_end`` except bitmaps and pages, as (offset, bytes)."""
        pieces = [(0, self.head)] if self.head else []
        pieces += [(self.base, _head(self.machine, [saved.block for saved in self.blocks], self.page_bits))]
        pieces += [(saved.record_offset, mapped_ram.pack_record(saved.block, saved.header)) for saved in self.blocks]
        return pieces

    def tail(self, device_sections: bytes) -> bytes:
        """Everything from ``ram_end`` to the end of the stream.

        Args:
            device_sections: whole sections, head to footer, without an end mark.

        Raises:
            FormatError: ``device_sections`` is not that.
        """
        end_of_words = mapped_ram.pack_word(0, mapped_ram.RAM_SAVE_FLAG_EOS)
        footer = stream.pack_footer(RAM_SECTION_ID)
        end_head = bytes([stream.QEMU_VM_SECTION_END]) + RAM_SECTION_ID.to_bytes(4, "big")
        devices = [
            vmdesc.describe_device(each.name, each.instance_id, each.version_id, each.body_length)
            for each in read_device_sections(device_sections)
        ]
        ours = {"trailer": 1, **({vmdesc.TARGET_KEY: self.target} if self.target else {})}
        description = {"page_size": self.blocks[0].block.page_size, "devices": devices, TRAILER_KEY: ours}
        return b"".join(
            (
                end_of_words,
                footer,
                end_head,
                end_of_words,
                footer,
                device_sections,
                bytes([stream.QEMU_VM_EOF]),
                stream.pack_vmdesc(json.dumps(description)),
            )
        )


def _check(machine: str, blocks: list[RAMBlock]) -> None:
    """Refuse what cannot be stored in a file."""
    check_unique(blocks)
    if not (len(machine) <= stream.MAX_MACHINE_NAME and machine.isascii() and machine.isprintable()):
        raise RequestError(f"machine name {machine!r} is not printable ASCII of at most 255 characters")
    if len(blocks) > mapped_ram.MAX_BLOCKS:
        raise RequestError(f"{len(blocks)} RAMBlocks, at most {mapped_ram.MAX_BLOCKS}")
    for block in blocks:
        if block.page_size != TARGET_PAGE_SIZE:
            raise RequestError(
                f"block {block.idstr!r}: page size {block.page_size}, only {TARGET_PAGE_SIZE} can be saved"
            )


def _head(machine: str, blocks: list[RAMBlock], page_bits: int | None) -> bytes:
    total = sum(block.used_length for block in blocks)
    return b"".join(
        (
            stream.pack_head(machine, (MAPPED_RAM,), page_bits),
            stream.pack_section_head(
                stream.QEMU_VM_SECTION_START, RAM_SECTION_ID, mapped_ram.RAM_SECTION, 0, mapped_ram.RAM_VERSION
            ),
            mapped_ram.pack_word(total, mapped_ram.RAM_SAVE_FLAG_MEM_SIZE),
        )
    )
