"""Sizes in bytes: parse them, print them, align them.

One rule, in and out: ``GiB`` is 1024**3 bytes and ``GB`` 10**9, as IEC has it. ``G`` alone is binary, as in QEMU's own
options, which know no other suffix. What we print is binary.
"""

from __future__ import annotations

import re

from parallel_fixedram.core.errors import RequestError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
MAX_SIZE = (1 << 63) - 1  # off_t

_MAX_TEXT = 64  # characters; int() refuses to read thousands of digits
_SUFFIXES = "KMGTPE"
_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*(?:([KMGTPE])(iB|B)?|B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in a size such as ``4096``, ``64KiB``, ``1.5G``, ``2GB``.

    Raises:
        RequestError: not a size, not a whole number of bytes, or beyond what a file offset can hold.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _MAX_TEXT else None
    if match is None:
        shown = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
        raise RequestError(f"not a size: {shown!r}, expected a number with an optional suffix K, M, G, T, P or E")
    whole, fraction, suffix, rest = match.groups()
    digits = fraction or ""
    unit = 1000 if (rest or "").upper() == "B" else 1024
    factor: int = unit ** (_SUFFIXES.index(suffix.upper()) + 1) if suffix else 1
    divisor: int = 10 ** len(digits)
    size, left = divmod(int(whole + digits) * factor, divisor)
    if left:
        raise RequestError(f"not a whole number of bytes: {text!r}")
    if size > MAX_SIZE:
        raise RequestError(f"size too large: {text!r}, at most {MAX_SIZE} bytes")
    return size


def format_size(size: int) -> str:
    """A size for people: ``4.0 KiB``, ``1.5 GiB``; exact below 1 KiB."""
    if size < KIB:
        return f"{size} B"
    value = float(size)
    for suffix in _SUFFIXES:
        value /= 1024
        if value < 1024 or suffix == _SUFFIXES[-1]:
            break
    return f"{value:.{1 if value < 100 else 0}f} {suffix}iB"


def format_exact_size(size: int) -> str:
    """A size for people who compare two: ``4.0 KiB (4096 bytes)``."""
    return f"{format_size(size)} ({size} bytes)"


def format_count(number: int, noun: str) -> str:
    """A number of things for people: ``1 page``, ``2 pages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_rate(size: int, seconds: float) -> str:
    """A rate for people, in GiB/s."""
    return f"{size / seconds / GIB:.2f} GiB/s" if seconds > 0 else "-"


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment
