"""The name of a qcow2 image's backing file, from its header (QEMU docs/interop/qcow2.rst)."""

from __future__ import annotations

import struct

HEAD_BYTES = 1 << 16
"""The default size of a cluster. The name is in the first cluster; beyond this many bytes it is not read."""

_HEADER = struct.Struct(">4sIQI")
"""magic, version, backing_file_offset, backing_file_size."""
_MAGIC = b"QFI\xfb"
_MOST_NAME_BYTES = 1023


def backing_file(head: bytes) -> bytes | None:
    """The name of an image's backing file as the header has it; empty if there is none.

    Args:
        head: the first HEAD_BYTES bytes of the file, or all of a shorter one.

    Returns:
        None if this is not a qcow2 image, or its header makes no sense.
    """
    if len(head) < _HEADER.size:
        return None
    magic, version, offset, length = _HEADER.unpack_from(head)
    if magic != _MAGIC or version not in (2, 3) or length > _MOST_NAME_BYTES or offset + length > len(head):
        return None
    return head[offset : offset + length] if offset else b""
