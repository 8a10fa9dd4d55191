"""A file as QEMU writes it, prepared for clones in place, and what may have become of it when that was interrupted."""

from __future__ import annotations

import os
from pathlib import Path

from support.streamwriter import Block, stream

import parallel_fixedram
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.image.add_trailer import add_trailer
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.stale import punch_stale_pages, refuse_stale_pages

MAIN = "m"


class Prepared:
    """A file by QEMU, with stale pages behind some that are zero."""

    def __init__(self, folder: Path, picture: str) -> None:
        self.path = folder / "vm.mr"
        self.data = stream(Block(name=MAIN, picture=picture), Block(name="bios", picture="B.")).data
        self.renew()
        self.contents = self.pages()

    def renew(self) -> None:
        self.path.write_bytes(self.data)

    def pages(self) -> dict[str, bytes]:
        with Image(str(self.path)) as image:
            return {
                each.block.idstr: b"".join(image.read_pages(each.block.idstr, n, 1) for n in range(each.block.pages))
                for each in image.blocks
            }

    def add(self) -> None:
        with Image(str(self.path)) as image:
            add_trailer(image, [MAIN], channels=2)

    def punch(self) -> None:
        with Image(str(self.path)) as image:
            punch_stale_pages(image)

    def has_trailer(self) -> bool:
        with Image(str(self.path)) as image:
            return image.file.trailer is not None

    def check_added(self) -> None:
        """No page is another one, and the trailer is there whole, or the next try adds it.

        What was interrupted is refused, with the length that gives the file back.
        """
        try:
            self.pages()
        except FormatError as error:
            what, _, length = error.hint.partition("truncate --size=")
            assert what == "if adding a clone stream was interrupted: "
            os.truncate(self.path, int(length.split()[0]))
        assert self.pages() == self.contents
        if not self.has_trailer():
            self.add()
        assert parallel_fixedram.verify(str(self.path)).ok

    def check_punched(self) -> None:
        assert self.pages() == self.contents
        self.punch()
        with Image(str(self.path)) as image:
            refuse_stale_pages(image, image.blocks, channels=1)
