"""Mutants: other bytes than a good file has, made by a script that is any bytes at all.

::

    script  op args op args ...       a good file, and where its numbers stand   ->   the file with these edits

Whoever draws scripts draws mutants that know the layout: seeded random bytes do, and so does a fuzzer that is guided by
coverage, whose own mutations of a script are small steps. A script is short, so a corpus of them is small.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import xxhash

PAGE = 4096
TOKENS = (
    *(b"1e999", b"-1e999", b"NaN", b"Infinity", b"null", b"true", b"-1", b"0.5", b'"x"', b"[]", b"{}", b'"\\ud800"'),
    *(b'"\\u0000"', b"9" * 400, b"[" * 2000, b'{"a":' * 2000, b"18446744073709551616", b'"devices"', b'"fields"'),
    *(b'"subsections"', b'"size"', b'"array_len"', b"mapped-ram", b"x-ignore-shared", b"configuration/capabilities"),
    *(b"configuration/target-page-bits", b"configuration/uuid", b"ram", b"<!DOCTYPE d [<!ENTITY e 'e'>]>", b"&e;"),
    *(b"encoding='utf-7'", b"encoding='idna'", b"<memory unit='TiB'>9</memory>", b"\xff", b"\xed\xa0\x80", b"\0"),
    *(b"<a>" * 200, b"QEVM\0\0\0\3", b"\x7e\0\0\0\2", b"\0\0\0\0\0\0\0\x10", b"FIXEDRAM"),
)
"""Words of the languages that stand in files, and of those who mean harm."""


@dataclass(frozen=True)
class Number:
    """A number in a file: where it stands, and how wide it is in bytes."""

    offset: int
    width: int
    order: str = "big"


@dataclass(frozen=True)
class Template:
    """A good file and the numbers in it."""

    data: bytes
    numbers: Sequence[Number] = ()


class Script:
    """Reads a script; behind its end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        at = self._at
        self._at += 1
        return self._data[at] if at < len(self._data) else 0

    def number(self, width: int) -> int:
        self._at += width
        return int.from_bytes(self._data[self._at - width : self._at], "big")

    def signed(self) -> int:
        return (self.byte() ^ 0x80) - 0x80

    def take(self, length: int) -> bytes:
        self._at += length
        return self._data[self._at - length : self._at]

    def place(self, data: bytearray) -> int:
        """An offset in the file, its end included."""
        return self.number(2) % (len(data) + 1)


def mutant(template: Template, script: bytes, most_edits: int = 8) -> bytes:
    """The template with the edits of a script."""
    data, steps = bytearray(template.data), Script(script)
    for _ in range(most_edits):
        if not steps.more:
            break
        _EDITS[steps.byte() % len(_EDITS)](data, template, steps)
    return bytes(data)


def _set_number(data: bytearray, template: Template, steps: Script) -> None:
    """A number becomes another one: of those at which something changes, mostly."""
    if (number := _number(template, steps)) is None or number.offset + number.width > len(data):
        return
    end = number.offset + number.width
    old = int.from_bytes(data[number.offset : end], number.order)
    bits = 8 * number.width
    match steps.byte() % 9:
        case 0:
            new = steps.number(number.width)
        case 1:
            new = 0
        case 2:
            new = -1
        case 3:
            new = old + steps.signed()
        case 4:
            new = (1 << steps.byte() % bits) + steps.signed()
        case 5:
            new = old ^ 1 << steps.byte() % bits
        case 6:
            new = len(data) + steps.signed()
        case 7:
            other = _number(template, steps) or number
            new = int.from_bytes(data[other.offset : other.offset + other.width], other.order) + steps.signed()
        case _:
            new = old + steps.signed() * PAGE
    data[number.offset : end] = (new & (1 << bits) - 1).to_bytes(number.width, number.order)


def _set_counted(data: bytearray, template: Template, steps: Script) -> None:
    """What a length counts becomes longer or shorter, and the length says so: consistent, where it is one."""
    if (number := _number(template, steps)) is None or number.offset + number.width > len(data):
        return
    start = number.offset + number.width
    length = int.from_bytes(data[number.offset : start], number.order)
    if start + length > len(data):
        return
    new = _token_or_bytes(steps) * (1 + steps.byte() % 4)
    at = start + steps.number(2) % (length + 1)
    end = min(at + steps.byte(), start + length)
    data[at:end] = new
    length += len(new) - (end - at)
    data[number.offset : start] = (length & (1 << 8 * number.width) - 1).to_bytes(number.width, number.order)


def _flip(data: bytearray, template: Template, steps: Script) -> None:
    if (at := steps.place(data)) < len(data):
        data[at] ^= 1 << steps.byte() % 8


def _overwrite(data: bytearray, template: Template, steps: Script) -> None:
    at, new = steps.place(data), _token_or_bytes(steps)
    data[at : at + len(new)] = new


def _insert(data: bytearray, template: Template, steps: Script) -> None:
    at = steps.place(data)
    data[at:at] = _token_or_bytes(steps)


def _delete(data: bytearray, template: Template, steps: Script) -> None:
    at = steps.place(data)
    del data[at : at + steps.byte() + 1]


def _copy(data: bytearray, template: Template, steps: Script) -> None:
    """A piece stands in another place too."""
    source, target, length = steps.place(data), steps.place(data), steps.byte() + 1
    data[target : target + length] = data[source : source + length]


def _cut(data: bytearray, template: Template, steps: Script) -> None:
    del data[steps.place(data) :]


def _lengthen(data: bytearray, template: Template, steps: Script) -> None:
    """Zeros, or something else, behind all there is."""
    data += bytes(steps.number(2) % (3 * PAGE)) + steps.take(steps.byte() % 8)


_EDITS: Sequence[Callable[[bytearray, Template, Script], None]] = (
    *(_set_number, _set_number, _set_counted, _flip, _overwrite, _insert, _delete, _copy, _cut, _lengthen),
)


def _number(template: Template, steps: Script) -> Number | None:
    which = steps.number(2)
    return template.numbers[which % len(template.numbers)] if template.numbers else None


def _token_or_bytes(steps: Script) -> bytes:
    which = steps.byte()
    return TOKENS[which % len(TOKENS)] if which >= 64 else steps.take(which % 16 + 1)


_DEEP = "nested too deeply"
VALUES: Sequence[object] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -1e300, float("inf"), float("nan")),
    *(
        "",
        "x",
        "\ud800",
        "\0",
        "a\nb",
        "x" * 300,
        "-1",
        "1e999",
        "/",
        "/dev/null",
        [],
        {},
        [None],
        {"": None},
        [[]],
        _DEEP,
    ),
)
"""What JSON can say where something else was expected."""


def said(value: Any) -> bytes:
    """The value as JSON."""
    return json.dumps(value).replace(f'"{_DEEP}"', "[" * 3000 + "]" * 3000).encode()


def changed(value: Any, script: bytes, most_edits: int = 3) -> Any:
    """What JSON says, with the edits of a script."""
    value, steps = json.loads(json.dumps(value)), Script(script)
    for _ in range(most_edits):
        if not steps.more:
            break
        value = _changed(value, steps)
    return value


def _changed(value: Any, steps: Script) -> Any:
    """The value with one thing in it replaced, gone, there twice, or added."""
    places = list(_places(value))
    holder, key = places[steps.number(2) % len(places)] if places else (None, None)
    if holder is None:
        return deepcopy(VALUES[steps.byte() % len(VALUES)])
    match steps.byte() % 8:
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 2 if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        case 3:
            other, at = places[steps.number(2) % len(places)]
            holder[key] = json.loads(json.dumps(other[at]))
        case 4 if type(holder[key]) is int:
            holder[key] = 1 << steps.byte() % 70
        case 4 | 5 if isinstance(holder[key], str):
            text = bytearray(holder[key], "latin-1", "replace")
            at = steps.byte() % (len(text) + 1)
            text[at : at + steps.byte() % 3] = steps.take(steps.byte() % 3)
            holder[key] = text.decode("latin-1")
        case _:
            holder[key] = deepcopy(VALUES[steps.byte() % len(VALUES)])
    return value


def places(value: Any) -> int:
    """How many there are in what JSON says, itself included."""
    return 1 + sum(1 for _ in _places(value))


def replaced(value: Any, place: int, new: object) -> Any:
    """The value with another one in a place, which may be all of it."""
    value = json.loads(json.dumps(value))
    if not place:
        return new
    holder, key = list(_places(value))[place - 1]
    holder[key] = new
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Whatever holds something, and where in it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def trailer_numbers(data: bytes) -> Iterator[Number]:
    """The numbers of the trailer at the end of a file of ours."""
    footer = len(data) - 48
    yield from (Number(footer + at, 4) for at in (8, 12))
    yield from (Number(footer + at, 8) for at in (16, 24, 32, 40))
    parts, at = struct.unpack_from(">I", data, footer + 12)[0], struct.unpack_from(">Q", data, footer + 24)[0]
    for _ in range(parts):
        yield from (Number(at, 4), Number(at + 4, 4), Number(at + 8, 8))
        kind, length = struct.unpack_from(">I4xQ", data, at)
        at += 16
        if kind == 2:
            yield Number(at, 4)
        if kind in (1, 5):
            yield from (Number(each, 8) for each in range(at, at + length, 8))
        at += length


def resealed(data: bytes) -> bytes:
    """The file with digests of heads and trailer as they should be, as far as a trailer can be found."""
    if len(data) < 48 or data[-48:-40] != b"FIXEDRAM":
        return data
    parts, base, start = struct.unpack_from(">IQQ", data, len(data) - 36)
    sealed, at = bytearray(data), start
    for _ in range(min(parts, 64)):
        if not at + 16 <= len(data) - 48:
            break
        kind, length = struct.unpack_from(">I4xQ", data, at)
        at += 16
        for row in range(at, min(at + length, len(data) - 72), 24) if kind in (1, 5) else ():
            offset, count = struct.unpack_from(">QQ", data, row)
            struct.pack_into(">Q", sealed, row + 16, xxhash.xxh3_64_intdigest(data[offset : offset + count]))
        at += length
    if base <= start <= len(data):
        struct.pack_into(">Q", sealed, len(data) - 8, xxhash.xxh3_64_intdigest(bytes(sealed[start:-8])))
    return bytes(sealed)
