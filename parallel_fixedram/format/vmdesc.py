"""The VM description: QEMU's JSON after the end of a stream, which knows how long each device section is.

FULL sections carry no length. Their bodies may hold anything, also bytes that look like the end of a section, which the
guest itself could have put there; the description is not in the guest's hands.
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
"""Longest VM description that is parsed, bytes. QEMU's takes about 8 KB a processor, and a longer one is never ours."""

MAX_PADDING = 4096
"""Zeros after the description, fewer than this many, are overlooked."""

TARGET_KEY = "target"
"""Key of QEMU's name for the guest's architecture, in what files of ours add: a machine type may stand for several."""

_HEAD = struct.Struct(">BI")
_MAX_CANDIDATES = 16

Lengths = Mapping[tuple[str, int], deque[int]]
"""Bytes of the bodies of device sections, by name and instance id. Several, in the stream's order, where what a guest
has put into a body was taken for the head of a section."""


def describe_device(name: str, instance_id: int, version_id: int, body_length: int) -> dict[str, Any]:
    """A device section as an entry of the description's ``devices``, its body as one opaque field."""
    body = {"name": "body", "type": "buffer", "size": body_length}
    return {"name": name, "instance_id": instance_id, "vmsd_name": name, "version": version_id, "fields": [body]}


def read_vmdesc(cursor: Cursor) -> Mapping[str, Any] | None:
    """The description after the end mark; None if there is none, empty if it is too long to be looked at.

    Raises:
        FormatError: the file ends in it, or it is not a JSON object.
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
    """The guest's architecture by what a file of ours adds to the description; empty if it does not say."""
    found = ours.get(TARGET_KEY) if isinstance(ours, dict) else None
    return found if isinstance(found, str) and found.isascii() and found.isprintable() else ""


def section_lengths(read: ReadAt, start: int, end: int) -> Lengths:
    """What the description that ends at ``end`` says of device sections; empty if there is none, or none that helps.

    Args:
        read: gives bytes at an offset.
        start: where the description begins at the earliest.
        end: where it ends, but for padding.
    """
    start = max(start, end - MAX_VMDESC - _HEAD.size - MAX_PADDING)
    tail = read(start, max(end - start, 0)).rstrip(b"\0")
    position = len(tail)
    for _ in range(_MAX_CANDIDATES):  # JSON has no control characters: the last 06 or so is the one
        position = tail.rfind(bytes([stream.QEMU_VM_VMDESCRIPTION]), 0, position)
        if position < 0:
            break
        if position + _HEAD.size <= len(tail):
            length = _HEAD.unpack_from(tail, position)[1]
            if position + _HEAD.size + length == len(tail):
                try:
                    return _lengths(_parse(tail[position + _HEAD.size :], start + position))
                except (FormatError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
                    break  # not a description, or one of a kind that we do not know: footers will do
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
