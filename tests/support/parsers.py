"""Every parser of bytes that others made, and what has to hold for whatever it is given.

An input names a good file by its first byte; the rest is a script (``mutants.py``). A parser accepts, or says what is
wrong by the error that is for that. What it accepts is what a second reader finds there, and it reads no more than a
small multiple of what there is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from xml.dom import Node, expatbuilder
from xml.dom.minidom import Text

from support.libvirt_images import libvirt_head
from support.mutants import Number, Template, changed, mutant, said, trailer_numbers
from support.second_reader import check_stream
from support.streamwriter import (
    DEVICES,
    PAGE,
    Block,
    Section,
    Stream,
    device_bytes,
    our_file,
    our_vmdesc,
    stream,
)

from parallel_fixedram.core.disks import Disk, DiskImage, pack_disks, unpack_disks
from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format import stream as grammar
from parallel_fixedram.format import vmdesc
from parallel_fixedram.format.device_sections import DeviceSection, read_device_sections
from parallel_fixedram.format.globalstate import with_run_state
from parallel_fixedram.format.libvirt_domain import read_domain
from parallel_fixedram.format.libvirt_image import SIZE, read_libvirt_header
from parallel_fixedram.format.migration_file import parse, read_clone_blocks
from parallel_fixedram.format.qcow2 import HEAD_BYTES, backing_file
from parallel_fixedram.format.stream import Cursor

CORPUS = Path(__file__).parents[1] / "matrix" / "corpus"
LONGEST = 48
"""Bytes of a script."""
M = Block(name="m", picture="A0C." * 17)
BIOS = Block(name="pc.bios", picture="B")
CONFIG = Section(name="globalstate", body=struct.pack(">I32s", 8, b"running") + bytes(68))
SMALL = Block(name="m", picture="A0C." * 2)
DISKS = (
    Disk(
        device="virtio0",
        node="#block1",
        size=1 << 30,
        images=(
            DiskImage(path="/nowhere/a.qcow2", format="qcow2", bytes=196616, modified_ns=10**18, digest="0" * 32),
            DiskImage(path="/nowhere/b.img", format="raw", bytes=1 << 30),
        ),
    ),
)
OURS = (
    our_file(M, alignment=PAGE),
    our_file(SMALL, BIOS, alignment=PAGE, clone=[BIOS], devices=[CONFIG, *DEVICES], disks=pack_disks(DISKS)),
)
DOMAIN = b"""<domain type='qemu'><name>vm</name><uuid>8f3c1b52-6f1d-4c53-9a0e-0d6f2f7f1c11</uuid>
<memory unit='KiB'>65536</memory><devices>
<disk type='file' device='disk'><source file='/a.img'/><target dev='vda'/></disk>
<disk type='network' device='disk'><source protocol='nbd' name='x'/><target dev='vdb'/></disk></devices></domain>"""
DESCRIPTION = json.loads(our_vmdesc(DEVICES))
_MORE = {"vmsd_name": "timer/more", "version": 1, "fields": [{"name": "a", "size": 4}]}
DESCRIPTION["devices"][0]["subsections"] = [_MORE]
DESCRIPTION["devices"][0]["fields"][0]["array_len"] = 3


@dataclass(frozen=True)
class Parser:
    """Takes an input; returns whether it was accepted, and lets out what is wrong with us."""

    take: Callable[[bytes], bool]
    templates: int
    """How many good files it begins with."""


class Reads:
    """Bytes as a file gives them; they may be read a few times over, not more."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert offset >= 0 <= length
        self.calls += 1
        assert self.calls < 1000 + len(self.data) // 8, "the same bytes are read again and again"
        return self.data[offset : offset + length]


def _template(made: Stream, *, ours: bool = False) -> Template:
    numbers = [Number(*each) for each in made.numbers]
    return Template(made.data, [*numbers, *(trailer_numbers(made.data) if ours else ())])


STREAMS = [
    _template(stream(Block(name="m", picture="A0C-" * 2), BIOS)),
    _template(stream(SMALL, capabilities=("x-ignore-shared", "mapped-ram"), uuid=bytes(range(16)))),
    _template(stream(SMALL, Block(name="n", absent=True), capabilities=("x-ignore-shared", "mapped-ram"), vmdesc=None)),
    _template(stream(SMALL, page_bits=12, early=[Section(name="slirp", body=b"x", more=(b"y", b"z"))], end=False)),
    *(_template(each, ours=True) for each in OURS),
]
IMAGES = [
    _template(our_file(SMALL, BIOS, alignment=PAGE, head=libvirt_head(DOMAIN, padding=4096 - 92 - 700)), ours=True)
]


def _head(data: bytes) -> bool:
    """The head of a stream by itself."""
    cursor = Cursor(Reads(data), len(data))
    said = grammar.read_head(cursor)
    name = said.machine.encode()
    assert data.startswith(b"QEVM\0\0\0\3\7" + struct.pack(">I", len(name)) + name)
    assert cursor.offset <= len(data)
    return True


def _whole(data: bytes) -> bool:
    reads = Reads(data)
    file = parse(reads, len(data))
    check_stream(data, file)
    if file.trailer:
        clone = read_clone_blocks(reads, file.trailer)
        assert all(each.pages_end <= file.trailer.clone_end for each in clone)
    return True


def _libvirt_header(data: bytes) -> bool:
    said = read_libvirt_header(Reads(data), len(data))
    order = "<" if int.from_bytes(data[16:20], "little") == said.version else ">"
    version, room, running, number, cookie = struct.unpack_from(order + "5I", data, 16)
    assert (said.version, said.room, said.running, said.format) == (version, room, running != 0, number)
    assert said.end <= len(data)
    assert data[SIZE : SIZE + len(said.xml) + 1] == said.xml + b"\0"
    assert len(said.xml) < (cookie or room)
    return True


def _domain(data: bytes) -> bool:
    said = read_domain(data)
    root = expatbuilder.parseString(data, namespaces=False).documentElement
    (name, *_), devices = _below(root, "name"), _below(root, "devices")
    before = takewhile(lambda each: each.nodeType != Node.ELEMENT_NODE, name.childNodes)
    text = "".join(each.data for each in before if isinstance(each, Text))
    assert said.name == text.strip()
    assert len(said.disks) == sum(len(_below(each, "disk")) for each in devices)
    return True


def _below(element: Any, name: str) -> list[Any]:
    return [each for each in element.childNodes if each.nodeName == name]


def _rewritten(section: DeviceSection, body: bytes) -> bytes:
    head = struct.pack(">BIB", 4, section.section_id, len(section.name)) + section.name.encode()
    tail = struct.pack(">BI", 0x7E, section.section_id)
    return head + struct.pack(">II", section.instance_id, section.version_id) + body + tail


def _sections(data: bytes) -> bool:
    found = read_device_sections(data)
    bodies = [data[each.body_offset : each.body_offset + each.body_length] for each in found]
    assert b"".join(map(_rewritten, found, bodies)) == data
    with_run_state(data, "paused")
    return True


def _disks(data: bytes) -> bool:
    try:
        said = unpack_disks(data)
    except (ValueError, RecursionError):  # which their one caller makes a FormatError of
        return False
    assert unpack_disks(pack_disks(said)) == said
    return True


def _description(data: bytes) -> bool:
    """A VM description behind a stream."""
    whole = struct.pack(">BI", 6, len(data)) + data
    lengths = vmdesc.section_lengths(Reads(whole), 0, len(whole))
    assert all(isinstance(each, int) for queue in lengths.values() for each in queue)
    said = vmdesc.read_vmdesc(Cursor(Reads(whole), len(whole)))
    assert said == json.loads(data) or b"NaN" in data
    return True


def _qcow2(data: bytes) -> bool:
    name = backing_file(data[:HEAD_BYTES])
    assert not name or name in data
    return name is not None


def _of_bytes(take: Callable[[bytes], bool], templates: Sequence[Template]) -> Parser:
    def taken(given: bytes) -> bool:
        template = templates[given[0] % len(templates)] if given else templates[0]
        try:
            return take(mutant(template, given[1:]))
        except FormatError:
            return False

    return Parser(taken, len(templates))


def _of_json(take: Callable[[bytes], bool], value: object) -> Parser:
    """One half of the inputs are other values, one half other bytes."""
    text = Template(json.dumps(value).encode())

    def taken(given: bytes) -> bool:
        try:
            if given[:1] > b"\x7f":
                return take(mutant(text, given[1:]))
            return take(said(changed(value, given[1:])))
        except (FormatError, RecursionError):
            return False

    return Parser(taken, 2)


_SECTIONS = device_bytes([CONFIG, *DEVICES])
_QCOW2 = struct.pack(">4sIQI", b"QFI\xfb", 3, 64, 9) + bytes(44) + b"/base.img" + bytes(60)
PARSERS = {
    "head": _of_bytes(_head, [Template(each.data[:200], each.numbers[:12]) for each in STREAMS]),
    "stream": _of_bytes(_whole, STREAMS),
    "image": _of_bytes(_whole, IMAGES),
    "libvirt header": _of_bytes(
        _libvirt_header,
        [
            Template(libvirt_head(DOMAIN, padding=64, order=order), [Number(at, 4, name) for at in range(16, 36, 4)])
            for order, name in (("<", "little"), (">", "big"))
        ],
    ),
    "domain": _of_bytes(_domain, [Template(DOMAIN)]),
    "device sections": _of_bytes(_sections, [Template(_SECTIONS)]),
    "disks": _of_json(_disks, json.loads(pack_disks(DISKS))),
    "VM description": _of_json(_description, DESCRIPTION),
    "qcow2": _of_bytes(_qcow2, [Template(_QCOW2, [Number(4, 4), Number(8, 8), Number(16, 4)])]),
}


def kept(parser: str) -> list[bytes]:
    """Inputs that once reached a branch that no other did, a line each."""
    return [bytes.fromhex(line) for line in (CORPUS / f"{parser.replace(' ', '-')}.txt").read_text().split()]
