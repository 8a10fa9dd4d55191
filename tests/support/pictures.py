"""Pictures: ``"A0b-"`` draws RAM, a bitmap or a file, one letter a page.

``-`` a page that was never touched (a hole), ``0`` a touched page full of zeros, ``A`` to ``Z`` a page full of that
letter, ``a`` to ``z`` a page with that letter in its last byte only. In a drawn file ``-`` is a page that is absent and
reads as zeros, ``!`` one that is absent but whose place does not, ``?`` anything that no letter stands for.
"""

from __future__ import annotations

import os

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.image.image import Image

PAGE = TARGET_PAGE_SIZE


def page(letter: str) -> bytes:
    """The contents of one page."""
    if letter in "-0":
        return bytes(PAGE)
    return letter.encode() * PAGE if letter.isupper() else bytes(PAGE - 1) + letter.encode()


def content(picture: str) -> bytes:
    """What RAM of that picture reads as."""
    return b"".join(map(page, picture))


def picture_of(data: bytes) -> str:
    """The picture of bytes; holes and zero pages are both ``0``."""
    return "".join(_letter(data[start : start + PAGE]) for start in range(0, len(data), PAGE))


def draw(fd: int, picture: str, *, offset: int = 0) -> None:
    """Make the file hold the picture from ``offset`` on, holes included."""
    os.ftruncate(fd, offset)
    os.ftruncate(fd, offset + len(picture) * PAGE)
    start = 0
    while start < len(picture):
        end = start
        while end < len(picture) and picture[end] != "-" and end - start < 256:
            end += 1
        if end > start:
            os.pwrite(fd, content(picture[start:end]), offset + start * PAGE)
        start = max(end, start + 1)


def memfd(picture: str) -> int:
    """A new memory file of that picture; the caller closes it."""
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    draw(fd, picture)
    return fd


def bits(picture: str) -> list[int]:
    """1 for every page that is drawn, 0 for ``-``."""
    return [int(letter != "-") for letter in picture]


def mark(bitmap: PageBitmap, picture: str) -> None:
    """Set the bit of every page that is drawn."""
    for index, letter in enumerate(picture):
        if letter != "-":
            bitmap.set_range(PageRange(index, 1))


def marked(bitmap: PageBitmap) -> str:
    """A bitmap as a picture: ``x`` for a set bit, ``-`` for a clear one."""
    return "".join("x" if bitmap.test(index) else "-" for index in range(bitmap.pages))


def allocated_pages(fd: int) -> int:
    """Pages that the file takes on its file system."""
    return os.fstat(fd).st_blocks * 512 // PAGE


def read_all(fd: int) -> bytes:
    """The whole file, read without allocating anything."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def saved_picture(path: str, idstr: str = "ram") -> str:
    """A block as the file has it."""
    with Image(path) as image:
        block, bitmap = image.block(idstr), image.bitmap(idstr)
        letters = []
        for index in range(block.block.pages):
            letter = _letter(image.channel.bytes_at(block.page_offset(index), PAGE))
            absent = not bitmap.test(index)
            letters.append(("-" if letter == "0" else "!") if absent else letter)
        return "".join(letters)


def _letter(data: bytes) -> str:
    if not any(data[:-1]):
        return chr(data[-1]) if data[-1] else "0"
    letter = chr(data[0])
    return letter if data == data[:1] * PAGE else "?"
