"""Machine code for x86, written by hand: bytes, labels, and jumps to them."""

from __future__ import annotations

Part = bytes | str | tuple[bytes, str, int, int]
"""Machine code, ``label:``, or (opcode, label, width of the operand, what to add to the label's address).

Width 1 means a jump relative to the next instruction.
"""


def u32(value: int) -> bytes:
    """Four bytes, little-endian."""
    return value.to_bytes(4, "little")


def assemble(*parts: Part, origin: int) -> bytes:
    """The bytes of all parts, one after the other.

    Args:
        parts: every label that is jumped to is among them.
        origin: address of the first byte.
    """
    labels: dict[str, int] = {}
    position = origin
    for part in parts:
        if isinstance(part, str):
            labels[part.rstrip(":")] = position
        else:
            position += len(part) if isinstance(part, bytes) else len(part[0]) + part[2]
    code = b""
    for part in parts:
        if isinstance(part, bytes):
            code += part
        elif isinstance(part, tuple):
            opcode, label, width, plus = part
            code += opcode
            value = labels[label] + plus - (origin + len(code) + 1 if width == 1 else 0)
            code += value.to_bytes(width, "little", signed=width == 1)
    return code
