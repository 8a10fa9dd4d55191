"""A second reader of mapped-ram files, as plain as can be: it shares no code with the package it is an oracle for.

Written from the format, for whole x86 files: it believes everything it reads. The lengths of device sections come from
the VM description, which the package's own reader does not use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
HEADER = 28
VMDESC = b"\x06"
EOS = b"\0\0\0\0\0\0\0\x10"


@dataclass(frozen=True)
class StoredBlock:
    """A RAMBlock in a file; offsets are absolute."""

    name: str
    used: int
    record: int
    bitmap: int
    start: int
    """Where page 0 lies."""
    bits: NDArray[np.bool_]
    pages: NDArray[np.uint8]
    """What lies in the page array, whatever the bits say; shape (pages, 4096)."""

    def contents(self) -> bytes:
        """RAM as the file has it: a page whose bit is clear is zero."""
        ram = np.zeros_like(self.pages, subok=False)
        ram[self.bits] = self.pages[self.bits]
        return ram.tobytes()

    def stale(self) -> int:
        """How many pages lie in the file although their bits are clear."""
        return int(self.pages[~self.bits].any(axis=1).sum())


@dataclass(frozen=True)
class Section:
    """A device section; offset absolute, length up to behind its footer."""

    name: str
    instance: int
    version: int
    offset: int
    length: int


@dataclass(frozen=True)
class StoredGuest:
    """All of a file; offsets are absolute."""

    machine: str
    capabilities: list[str]
    blocks: dict[str, StoredBlock]
    ram_end: int
    """Behind the last page array."""
    sections: list[Section]
    """Empty if nobody said how long they are."""
    eof: int
    """Where the EOF byte stands; 0 if nobody said how long the sections are."""


def vm_description(path: Path) -> dict[str, Any]:
    """The JSON at the end of a file by QEMU: behind the last byte 6 with a length that fits."""
    data = path.read_bytes()
    at = data.rindex(VMDESC)
    while int.from_bytes(data[at + 1 : at + 5], "big") != len(data) - at - 5:
        at = data.rindex(VMDESC, 0, at)
    return dict(json.loads(data[at + 5 :]))


def read_stored(path: Path, offset: int = 0, description: Mapping[str, Any] | None = None) -> StoredGuest:
    """Read a file whose stream starts at ``offset``; device sections only if ``description`` says their lengths."""
    file = _File(path, offset)
    machine, capabilities = file.configuration()
    ram_id = file.take(4)
    blocks = file.ram()
    ram_end, sections, eof = file.at, [], 0
    if description is not None:
        assert file.take(13) == EOS + b"\x7e" + ram_id
        lengths = {(each["name"], each["instance_id"]): sum(_lengths(each)) for each in description["devices"]}
        sections = list(file.sections(ram_id, lengths))
        eof = file.at - 1
        assert not lengths, "a device of the description has no section"
    return StoredGuest(machine, capabilities, blocks, ram_end, sections, eof)


class _File:
    def __init__(self, path: Path, at: int) -> None:
        self.data = np.memmap(path, np.uint8, "r")
        self.at = at

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def text(self) -> str:
        return self.take(self.number(1)).decode("ascii")

    def configuration(self) -> tuple[str, list[str]]:
        assert self.take(9) == b"QEVM\0\0\0\3\7"
        machine = self.take(self.number(4)).decode("ascii")
        capabilities: list[str] = []
        while (kind := self.number(1)) == 5:
            match self.text(), self.number(4):
                case "configuration/capabilities", 1:
                    capabilities = [self.text() for _ in range(self.number(4))]
                case "configuration/uuid", 1:
                    self.take(16)
                case "configuration/target-page-bits", 1:
                    assert 1 << self.number(4) == PAGE
                case other:
                    raise AssertionError(other)
        assert kind == 1
        return machine, capabilities

    def ram(self) -> dict[str, StoredBlock]:
        assert (self.text(), self.number(4), self.number(4)) == ("ram", 0, 4)
        left = self.number(8) - 4
        blocks = {}
        while left:
            block = self.block()
            blocks[block.name] = block
            left -= block.used
        return blocks

    def block(self) -> StoredBlock:
        record, name, used = self.at, self.text(), self.number(8)
        assert (self.number(4), self.number(8)) == (1, PAGE)
        bitmap, start = self.number(8), self.number(8)
        count, self.at = used // PAGE, start + used
        bits = np.unpackbits(self.data[bitmap : bitmap + -(-count // 64) * 8], bitorder="little").astype(bool)
        assert not bits[count:].any()
        return StoredBlock(
            name, used, record, bitmap, start, bits[:count], self.data[start : self.at].reshape(-1, PAGE)
        )

    def sections(self, ram_id: bytes, lengths: dict[tuple[str, int], int]) -> Iterator[Section]:
        while kind := self.number(1):
            head = self.at - 1
            if kind in (2, 3):
                assert self.take(17) == ram_id + EOS + b"\x7e" + ram_id
            elif kind == 8:
                self.take(2)
                self.take(self.number(2))
            else:
                assert kind == 4
                section_id, name, instance, version = self.take(4), self.text(), self.number(4), self.number(4)
                self.take(lengths.pop((name, instance)))
                assert self.take(5) == b"\x7e" + section_id
                yield Section(name, instance, version, head, self.at - head)


def _lengths(device: Mapping[str, Any]) -> Iterator[int]:
    """The bytes that the fields and subsections of a device or a subsection take in the stream."""
    for each in device.get("fields", ()):
        yield each["size"] * each.get("array_len", 1)
    for each in device.get("subsections", ()):
        yield 1 + 1 + len(each["vmsd_name"]) + 4 + sum(_lengths(each))
