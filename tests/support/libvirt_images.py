"""Save images in libvirt's form: headers made without the product, and other files put behind one by the product."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import xxhash

from parallel_fixedram.core.observer import SILENT
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.save_options import DirectIO, Durability, Publishing, Writing
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.image.draft import Draft
from parallel_fixedram.image.image import Image

XML = b"<domain type='qemu'><name>vm</name></domain>"
FIELDS = ("version", "data_len", "was_running", "format", "cookie_offset")


def libvirt_head(
    xml: bytes = XML,
    *,
    magic: bytes = b"LibvirtQemudSave",
    order: str = "<",
    cookie: bytes = b"",
    padding: int = 64 << 10,
    **fields: int,
) -> bytes:
    """What libvirt writes in front of a stream (libvirt: src/qemu/qemu_saveimage.c), but for ``fields``."""
    body = xml + b"\0" + cookie + bytes(padding)
    values = {"version": 2, "data_len": len(body), "was_running": 1, "format": 6, "cookie_offset": 0} | fields
    return magic + struct.pack(f"{order}5I", *(values[name] for name in FIELDS)) + bytes(56) + body


def put_behind(head: bytes, source: Path, target: Path, *, main: str = "") -> None:
    """Make a file of ours with what another one holds, behind ``head``.

    Args:
        head: what stands in front of the stream.
        source: a mapped-ram file, with device sections or without.
        target: the new one.
        main: name of its main memory, where it has a clone stream.
    """
    with Image(str(source)) as image:
        blocks = [saved.block for saved in image.blocks]
        layout = FileLayout.plan(image.file.configuration.machine, blocks, head=head)
        ledger = Ledger(blocks)
        state = b"".join(image.channel.bytes_at(each.offset, each.length) for each in image.file.devices)
        publishing = Publishing(durability=Durability.NONE)
        with Draft(str(target), layout, Writing(direct_io=DirectIO.OFF), publishing) as draft:
            for number, (old, new) in enumerate(zip(image.blocks, layout.blocks, strict=True)):
                present = ledger.present[number]
                present.words[:] = image.bitmap(old.block.idstr).words
                for page in np.flatnonzero(present.bits(0, len(present.words))).tolist():
                    data = image.read_pages(old.block.idstr, page, 1)
                    draft.buffered.write(new.page_offset(page), memoryview(data))
                    ledger.digests[number][page] = xxhash.xxh3_64_intdigest(data)
            guests = [GuestBlock(block=each, source=None, main=each.idstr == main) for each in blocks]  # type: ignore[arg-type]
            draft.finish(guests, ledger, state, 0)
            with draft.image() as made:
                assert (made.file.base, made.file.libvirt is not None) == (len(head), True)
            draft.publish(SILENT)
