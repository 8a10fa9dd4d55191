"""Every bit of a file that is no page flips in its turn: what libvirt has in front of the stream, heads, file bitmaps,
device sections, digests, trailer.

What is found is a refusal or a difference; nothing else, and never nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import saving
from support.examples import thorough
from support.fault_matrix import Count
from support.libvirt_images import libvirt_head, put_behind
from support.pictures import draw

import parallel_fixedram
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import check_edits, check_ranges

pytestmark = pytest.mark.slow

RAM = {"pc.ram": "A-0B", "vga.vram": "z"}
NEAR = 32
"""Of zeros, those so many bytes from others are tried, and one bit of each; by `make soak` all bits."""


@pytest.fixture(params=["plain", "libvirt image"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    ram = {}
    for idstr, picture in RAM.items():
        ram[idstr] = str(tmp_path / idstr)
        fd = os.open(ram[idstr], os.O_RDWR | os.O_CREAT)
        draw(fd, picture)
        os.close(fd)
    saving.save(lambda: parallel_fixedram.open_ram(ram), str(tmp_path / "saved"))
    if request.param == "plain":
        return tmp_path / "saved"
    put_behind(libvirt_head(), tmp_path / "saved", tmp_path / "image")
    return tmp_path / "image"


def test_a_bit_that_flips_is_found(file: Path, count: Count) -> None:
    good = file.read_bytes()
    bits = list(outside_pages(file, good))
    with file.open("r+b", buffering=0) as opened:
        for offset, bit in bits:
            os.pwrite(opened.fileno(), bytes([good[offset] ^ 1 << bit]), offset)
            assert is_noticed(file), (hex(offset), bit)
            os.pwrite(opened.fileno(), good[offset : offset + 1], offset)
    assert file.read_bytes() == good
    assert not is_noticed(file)
    count("every bit outside the pages flips", len(bits))


def is_noticed(file: Path) -> bool:
    try:
        with Image(str(file)) as image:
            trailer = image.file.trailer
            return trailer is None or bool(check_ranges(image, trailer) or check_edits(image, trailer))
    except FormatError:
        return True


def outside_pages(file: Path, good: bytes) -> Iterator[tuple[int, int]]:
    """Offset and number of each bit to flip."""
    with Image(str(file)) as image:
        pages = [range(saved.header.pages_offset, saved.pages_end) for saved in image.blocks]
    others = [offset for offset in range(len(good)) if good[offset] and not any(offset in each for each in pages)]
    near = {offset + more for offset in others for more in range(-NEAR, NEAR + 1)}
    for offset in sorted(near):
        if 0 <= offset < len(good) and not any(offset in each for each in pages):
            yield from ((offset, bit) for bit in (range(8) if good[offset] or thorough() else (offset % 8,)))
