"""The VM description: QEMU's JSON after the end of a stream, which gives the length of each device section.

FULL sections carry no length. Their bodies may contain anything, even bytes that look like the end of a section: the
guest may have put them there. It has no influence on the description.
Source: QEMU migration/vmstate.c (vmstate_save_vmsd_v, vmsd_desc_field_end), migration/savevm.c.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Mapping
from typing import Any

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format import stream
from parallel_fixedram.format.stream import Cursor, ReadAt

MAX_VMDESC = 1 << 20
"""Longest VM description that we parse, bytes. QEMU's takes about 8 KB per processor; ours are far shorter."""

MAX_PADDING = 4096
"""Fewer zeros than this after the description are skipped."""

TARGET_KEY = "target"
"""Key, in what our files add to the description, of QEMU's name for the guest's architecture: a machine type may exist
for several."""

_HEAD = struct.Struct(">BI")
_MAX_CANDIDATES = 16

Lengths = Mapping[tuple[str, int], deque[int]]
"""Body lengths of device sections in bytes, by name and instance id. There are several, in the stream's order, only if
bytes that a guest put into a body were taken for the head of a section when the file was written."""


def describe_device(name: str, instance_id: int, version_id: int, body_length: int) -> dict[str, Any]:
    """The entry in the description's ``devices`` for a device section, its body as one opaque field."""
    body = {"name": "body", "type": "buffer", "size": body_length}
    return {"name": name, "instance_id": instance_id, "vmsd_name": name, "version": version_id, "fields": [body]}


def read_vmdesc(cursor: Cursor) -> Mapping[str, Any] | None:
    """The description after the end mark; None if there is none, empty if it is too long to parse.

    Raises:
        FormatError: the file ends inside it, or it is not a JSON object.
    """
    if cursor.peek(1) != bytes([stream.QEMU_VM_VMDESCRIPTION]):
        return None
    at = cursor.offset
    cursor.skip(1, "VM description")
    length = cursor.be32("length of the VM description")
    if length > MAX_VMDESC:
        cursor.skip(length, "VM description")
        return {}
    return _parse(cursor.take(length, "VM description"), at)


def target(ours: object) -> str:
    """The guest's architecture, from what our files add to the description; empty if it is not there."""
    found = ours.get(TARGET_KEY) if isinstance(ours, dict) else None
    return found if isinstance(found, str) and found.isascii() and found.isprintable() else ""


def section_lengths(read: ReadAt, start: int, end: int) -> Lengths:
    """The lengths in the description that ends at ``end``; empty if there is none, or none that we understand.

    Args:
        read: gives bytes at an offset.
        start: the description does not begin before this offset.
        end: where it ends, padding included.
    """
    start = max(start, end - MAX_VMDESC - _HEAD.size - MAX_PADDING)
    tail = read(start, max(end - start, 0)).rstrip(b"\0")
    position = len(tail)
    for _ in range(_MAX_CANDIDATES):  # JSON has no control characters: a 06 is either the mark or part of the length
        position = tail.rfind(bytes([stream.QEMU_VM_VMDESCRIPTION]), 0, position)
        if position < 0:
            break
        if position + _HEAD.size <= len(tail):
            length = _HEAD.unpack_from(tail, position)[1]
            if position + _HEAD.size + length == len(tail):
                try:
                    return _lengths(_parse(tail[position + _HEAD.size :], start + position))
                except (FormatError, KeyError, TypeError, ValueError, RecursionError):
                    break  # not a description, or not of a kind that we know: look for footers instead
    return {}


def _parse(text: bytes, at: int) -> Mapping[str, Any]:
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError("the VM description is not JSON", offset=at) from error
    if not isinstance(description, dict):
        raise FormatError("the VM description is not a JSON object", offset=at)
    return description


def _lengths(description: Mapping[str, Any]) -> Lengths:
    lengths: dict[tuple[str, int], deque[int]] = {}
    for device in description["devices"]:
        name, instance_id = str(device["name"]), int(device["instance_id"])
        lengths.setdefault((name, instance_id), deque()).append(_body_length(device))
    return lengths


def _body_length(vmstate: Mapping[str, Any]) -> int:
    """Bytes of a vmstate: its fields, and its subsections with their heads (05, counted name, version)."""
    length = sum(int(field["size"]) * int(field.get("array_len", 1)) for field in vmstate.get("fields", ()))
    for subsection in vmstate.get("subsections", ()):
        length += 1 + 1 + len(str(subsection["vmsd_name"])) + 4 + _body_length(subsection)
    return length
