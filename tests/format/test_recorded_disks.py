"""The disks of the instant, as a trailer records them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laid_out_file import saved_file
from support.streamwriter import (
    PAGE,
    Block,
    Stream,
)

from parallel_fixedram.core.disks import Disk, DiskImage
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format import trailer as trailer_module
from parallel_fixedram.format.migration_file import parse

M = Block(name="m", picture="A0C")


def read(data):
    return parse(Stream(data).read, len(data))


texts = st.text(max_size=20)
images = st.builds(
    DiskImage,
    path=texts,
    format=st.sampled_from(["raw", "qcow2"]),
    bytes=st.integers(0, 1 << 62),
    modified_ns=st.integers(0, 1 << 62),
    digest=st.text("0123456789abcdef", max_size=32),
)
disk_lists = st.lists(
    st.builds(
        Disk,
        device=texts,
        node=texts,
        size=st.integers(0, 1 << 62),
        images=st.lists(images, min_size=1, max_size=3).map(tuple),
    ),
    max_size=4,
)


@given(disk_lists)
def test_disks_are_read_back(disks):
    data = saved_file(M, disks=disks)
    assert read(data).trailer.disks == tuple(disks)
    assert len(data) % PAGE == 0


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[", b"[1]", b'[{"device": "d"}]', b"[" * 100_000, b"\xff", b" " * ((1 << 20) + 1),
     b'[{"device":"d","node":"n","size":1,"images":[]}]', b'[{"device":"d","node":"n","size":"1","images":[]}]'],
)  # fmt: skip
def test_a_list_of_disks_that_is_none_is_refused(payload, monkeypatch):
    monkeypatch.setattr(trailer_module, "pack_disks", lambda _: payload)
    disk = Disk(device="d", node="n", size=1, images=(DiskImage(path="/d", format="raw"),))
    with pytest.raises(FormatError, match="list of disks"):
        read(saved_file(M, disks=[disk]))
