"""Where a file goes: plain paths and QEMU's ``file:`` URIs; every other transport cannot seek and is refused.

What looks like ``SCHEME:`` (a letter, then letters, digits, ``+``, ``-`` or ``.``, then a colon) is a URI, anything
else is a path. So ``/a:b``, ``./a:b`` and ``a b:c`` are paths, while ``a:b`` is an unknown protocol and not a file
that appears by a slip of the keyboard; ``./a:b`` or ``file:a:b`` name that file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from parallel_fixedram.core.errors import CapabilityError, RequestError
from parallel_fixedram.core.units import MAX_SIZE

UNSEEKABLE_SCHEMES = ("tcp", "unix", "vsock", "exec", "fd", "rdma")
"""Transports QEMU knows besides ``file:`` (migrate_uri_parse(), migration/migration.c)."""

NOT_SEEKABLE = "Migration requires seekable transport (e.g. file)"
"""What QEMU says of the others (migration/migration.c)."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_OFFSET_OPTION = ",offset="

_SUFFIXES = "BKMGTPE"
_DECIMAL = re.compile(r"\+?(?=\.?\d)0*(\d{0,19})(?:\.(\d*))?([BKMGTPE]?)", re.IGNORECASE | re.ASCII)
_HEX = re.compile(r"\+?0x([0-9a-f]+)", re.IGNORECASE | re.ASCII)
_NEGATIVE_OR_HUGE = re.compile(r"-\d+|\+?0*[1-9]\d{19,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileTarget:
    """A place in the file system, and where in that file the stream begins."""

    path: str
    """Never empty and without NUL characters; not checked against the file system."""
    offset: int = 0
    """Bytes; any value up to the largest file offset, not necessarily aligned."""


def parse_uri(text: str) -> FileTarget:
    """The file that a path or a ``file:PATH[,offset=SIZE]`` URI names.

    A plain path is taken as it is, also if it contains ``,offset=``. In a URI the offset begins after the first
    ``,offset=`` (file_parse_offset(), migration/file.c).

    Raises:
        CapabilityError: a transport that cannot seek.
        RequestError: an unknown protocol, a bad offset, no usable path, or ``-``.
    """
    refuse_dash(text)
    match = _SCHEME.match(text)
    if match is None:
        return FileTarget(_path(text))
    scheme = match[1]
    if scheme in UNSEEKABLE_SCHEMES:
        raise CapabilityError(NOT_SEEKABLE)
    if scheme != "file":
        raise RequestError(f"unknown migration protocol: {text}", hint=f"for a file of that name write ./{text}")
    path, option, offset = text[match.end() :].partition(_OFFSET_OPTION)
    return FileTarget(_path(path), _parse_offset(offset) if option else 0)


def refuse_dash(path: str) -> None:
    """Refuse the usual name of a standard stream, where a file is needed.

    Raises:
        RequestError: it is that.
    """
    if path == "-":
        raise RequestError(
            "'-' is not a file: standard input and output cannot seek", hint="for a file of that name write ./-"
        )


def _path(path: str) -> str:
    if not path:
        raise RequestError("the name of the file is empty")
    if "\0" in path:
        raise RequestError(f"the name of the file contains a NUL character: {path!r}")
    return path


def _parse_offset(text: str) -> int:
    """A size as qemu_strtosz() reads it (util/cutils.c): ``4096``, ``0x1000``, ``4K``, ``.5m``, but not ``4KiB``.

    A fraction needs a suffix other than B and is rounded to a whole byte, half a byte up. QEMU reads up to 2**64 - 1
    and fails later; here what does not fit a file offset is out of range immediately.
    """
    stripped = text.lstrip(" \t\n\v\f\r")
    size = _size(stripped)
    if _NEGATIVE_OR_HUGE.fullmatch(stripped) or (size is not None and size > MAX_SIZE):
        raise RequestError(f"file URI has bad offset {text}: Numerical result out of range")
    if size is None:
        raise RequestError(f"file URI has bad offset {text}: Invalid argument")
    return size


def _size(text: str) -> int | None:
    """Bytes, or None if the text is not a size."""
    if match := _HEX.fullmatch(text):
        return int(match[1], 16)
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole, digits, suffix = match.groups()
    fraction = float(f"0.{digits or 0}")
    unit = 1 << 10 * _SUFFIXES.index(suffix.upper() or "B")
    if unit == 1 and fraction % 1:
        return None
    # A 64-bit fixed-point fraction made from a double: the same roundings as in QEMU.
    fixed = (int(whole or 0) << 64) + int(fraction * 2.0**64)
    return (fixed * unit + (1 << 63)) >> 64
