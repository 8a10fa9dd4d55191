"""Image: a mapped-ram file opened for reading, whoever wrote it.

Nothing in the file is trusted: it is read with ``pread``, never mapped, and every offset in a header is checked against
the file's length before it is used.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from parallel_fixedram.core.bitmap import WORD_BYTES, PageBitmap, tail_mask, words_for
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import FormatError, RequestError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.uri import parse_uri
from parallel_fixedram.engine.pages.digest import DigestTable
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.migration_file import MigrationFile, parse, read_clone_blocks
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, data_end, data_extents, open_readable


class Image(Closing):
    """Context manager around an open file.

    Attributes:
        path: the file's path.
        file: the file's structure.
        blocks: its stored RAMBlocks, with their places.
        channel: for reading.
    """

    def __init__(self, path: str, *, offset: int = 0) -> None:
        self.path = path
        self._fd = open_readable(path, or_device=True)
        try:
            self.channel = FileChannel(self._fd, path)
            size = self.channel.size()
            self.file: MigrationFile = parse(self.channel.bytes_at, size, offset, data_end(self._fd, size))
        except FormatError as error:
            linux.close(self._fd)
            raise error.in_file(path) from error
        except BaseException:
            linux.close(self._fd)
            raise
        self.blocks = [saved for saved in self.file.blocks if not saved.absent]
        self._bitmaps: dict[str, PageBitmap] = {}

    def close(self) -> None:
        """Close the file; may be called more than once."""
        if self._fd >= 0:
            linux.close(self._fd)
        self._fd = -1

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Disks that belong to the saved instant; none if the file records none."""
        return self.file.trailer.disks if self.file.trailer else ()

    def block(self, idstr: str) -> SavedBlock:
        """The stored block of that name.

        Raises:
            RequestError: the file has none.
        """
        for saved in self.blocks:
            if saved.block.idstr == idstr:
                return saved
        self.refuse_absent([idstr])
        names = ", ".join(repr(saved.block.idstr) for saved in self.blocks)
        raise RequestError(f"{self.path!r} has no block {idstr!r}; it has {names}")

    def refuse_absent(self, wanted: Collection[str] | None = None) -> None:
        """Refuse blocks that the file only names, without their pages.

        Args:
            wanted: names of blocks; None for all.

        Raises:
            RequestError: there is such a block; the message names the first.
        """
        for saved in self.file.blocks:
            if saved.absent and (wanted is None or saved.block.idstr in wanted):
                raise RequestError(
                    f"{self.path!r} does not contain block {saved.block.idstr!r}, only its name: it was saved with "
                    "x-ignore-shared, so that memory stayed where it was",
                    hint="a stock QEMU with that same memory (share=on), x-ignore-shared and mapped-ram can load it",
                )

    def bitmap(self, idstr: str) -> PageBitmap:
        """The file bitmap of a block, in memory that later forks share.

        Raises:
            FormatError: bits after the last page are set.
        """
        if idstr not in self._bitmaps:
            self._bitmaps[idstr] = self._read_bitmap(self.block(idstr))
        return self._bitmaps[idstr]

    def slot_data(self, saved: SavedBlock) -> PageBitmap:
        """Pages whose place in the file is not a hole, whether or not their bit is set."""
        bitmap = PageBitmap(saved.block.pages, shared_words(words_for(saved.block.pages)))
        for start, end in data_extents(self._fd, saved.header.pages_offset, saved.pages_end):
            first, last = saved.page_at(start), saved.page_at(end - 1)
            bitmap.set_range(PageRange(first, last + 1 - first))
        return bitmap

    def digest_table(self, saved: SavedBlock) -> DigestTable | None:
        """The page digests of a block; None if the file has none."""
        if self.file.trailer is None:
            return None
        return DigestTable(self.channel, self.file.trailer.tables[self.file.blocks.index(saved)])

    def clone_blocks(self) -> frozenset[str]:
        """Names of the blocks in the file's clone stream; empty if it has none."""
        if self.file.trailer is None:
            return frozenset()
        try:
            found = read_clone_blocks(self.channel.bytes_at, self.file.trailer)
        except FormatError as error:
            raise error.in_file(self.path) from error
        return frozenset(saved.block.idstr for saved in found)

    def read_pages(self, idstr: str, first: int, count: int) -> bytes:
        """The contents of pages ``first`` to ``first + count`` of a block, with zeros for zero pages.

        Raises:
            RequestError: there is no such block or page.
        """
        saved, bitmap = self.block(idstr), self.bitmap(idstr)
        if not 0 <= first <= first + count <= saved.block.pages:
            raise RequestError(f"block {idstr!r} has {saved.block.pages} pages, asked for {first} to {first + count}")
        size = saved.block.page_size
        pages = bytearray(count * size)
        for page in range(first, first + count):
            if bitmap.test(page):
                self.channel.read(
                    saved.page_offset(page), memoryview(pages)[(page - first) * size : (page - first + 1) * size]
                )
        return bytes(pages)

    def check_complete(self) -> None:
        """Refuse a file whose bitmaps were never written: they would say that all of its RAM is zero.

        Raises:
            FormatError: there is no RAM END section and no bit is set, and yet there are pages.
        """
        if self.file.ram_ended or any(self.bitmap(saved.block.idstr).count() for saved in self.blocks):
            return
        for saved in self.blocks:
            if self.slot_data(saved).count():
                raise FormatError(
                    f"block {saved.block.idstr!r} has pages but an empty bitmap, and there is no RAM END section",
                    offset=saved.header.bitmap_offset,
                    hint="the save was interrupted, or was a background snapshot, which loses the bitmaps",
                ).in_file(self.path)

    def _read_bitmap(self, saved: SavedBlock) -> PageBitmap:
        words = shared_words(words_for(saved.block.pages))
        start = saved.header.bitmap_offset
        # skip holes in the bitmap, so that reading an empty file costs no memory
        for first, end in data_extents(self._fd, start, saved.bitmap_end):
            self.channel.read(first, words.view(np.uint8)[first - start : end - start].data)
        if len(words) and int(words[-1]) & ~tail_mask(saved.block.pages):
            raise FormatError(
                f"block {saved.block.idstr!r}: its bitmap has bits after the last page",
                offset=saved.bitmap_end - WORD_BYTES,
            ).in_file(self.path)
        return PageBitmap(saved.block.pages, words)


def open_image(uri: str) -> Image:
    """Open a mapped-ram file for reading, as a context manager.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]`` if the stream does not start at the beginning of the file.

    Raises:
        RequestError: it is not a file, or not a seekable URI.
        HostError: the file cannot be opened or read.
        FormatError: it is not a complete mapped-ram file.
    """
    target = parse_uri(uri)
    return Image(target.path, offset=target.offset)
