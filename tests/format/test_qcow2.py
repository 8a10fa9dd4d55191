"""What a qcow2 header says of the image behind."""

import struct

import pytest

from parallel_fixedram.format.qcow2 import HEAD_BYTES, backing_file


def image(*, magic=b"QFI\xfb", version=3, offset=512, length=8, name=b"disk.img", size=HEAD_BYTES):
    """The beginning of an image; written here from the specification, by field."""
    head = bytearray(size)
    head[0:8] = magic + struct.pack(">I", version)
    head[8:16] = struct.pack(">Q", offset)
    head[16:20] = struct.pack(">I", length)
    head[512 : 512 + len(name)] = name
    return bytes(head[:size])


@pytest.mark.parametrize("version", [2, 3])
def test_the_name_is_where_the_header_says(version):
    assert backing_file(image(version=version)) == b"disk.img"
    assert backing_file(image(length=4)) == b"disk"


def test_an_image_on_nothing_has_no_name():
    assert backing_file(image(offset=0, length=0)) == b""


WRONG = {
    "empty": b"",
    "shorter than a header": image()[:19],
    "another magic": image(magic=b"RAW!"),
    "another version": image(version=4),
    "a name that is too long": image(length=1024),
    "a name beyond the head": image(offset=HEAD_BYTES - 7),
    "a name far beyond it": image(offset=(1 << 64) - 1),
}


@pytest.mark.parametrize("head", WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_nothing(head):
    assert backing_file(head) is None
