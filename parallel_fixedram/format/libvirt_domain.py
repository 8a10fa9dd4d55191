"""What the XML of a libvirt domain says that people know it by: name, UUID, memory, disks.

The XML is untrusted. A document type, and with it every entity, is refused, and so is nesting deeper than any domain's;
its length is bounded by whoever read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from parallel_fixedram.core.errors import FormatError

MAX_DEPTH = 100
MAX_DISKS = 1000

_UNITS = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20,
    "GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40,
}  # fmt: skip
"""Units of ``<memory>`` (libvirt: docs/formatdomain.rst); KiB where none is said."""

_SOURCES = {"file": "file", "block": "dev", "dir": "dir"}
"""By the type of a disk, the attribute of ``<source>`` that has a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDisk:
    """A disk of a domain."""

    device: str
    """What the guest knows it by, such as ``vda``."""
    kind: str
    """``disk``, ``cdrom``, ``floppy`` or ``lun``."""
    source: str
    """A path, ``POOL/VOLUME``, ``PROTOCOL:NAME``, or what kind of source it is (``nvme``); empty without a medium."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What a domain's XML says of it; text is untrusted, and may hold any character that XML allows."""

    name: str
    uuid: str
    """Empty where the XML does not say it."""
    memory: int
    """Bytes; 0 where the XML does not say it."""
    disks: tuple[DomainDisk, ...]


def read_domain(xml: bytes) -> Domain:
    """What the XML of a domain says of it.

    Args:
        xml: a whole document, as of ``virsh dumpxml``.

    Raises:
        FormatError: it is not the well-formed XML of a domain, or has a document type.
    """
    root = _parse(xml)
    name = (root.findtext("name") or "").strip()
    if root.tag != "domain" or not name:
        raise FormatError("the XML is not a libvirt domain's: expected a <domain> with a <name>")
    disks = tuple(_disks(root))
    if len(disks) > MAX_DISKS:
        raise FormatError(f"the domain XML has {len(disks)} disks, at most {MAX_DISKS}")
    return Domain(name=name, uuid=(root.findtext("uuid") or "").strip(), memory=_memory(root), disks=disks)


def _parse(xml: bytes) -> Element:
    builder, depth = TreeBuilder(), 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise FormatError(f"the domain XML is nested deeper than {MAX_DEPTH} elements")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise FormatError("the domain XML has a document type, which libvirt does not write")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # an encoding may be unknown, or not be one at all
        raise FormatError(f"the domain XML is not well-formed: {error}") from None
    return builder.close()


def _memory(root: Element) -> int:
    element = root.find("memory")
    if element is None:
        return 0
    text, unit = (element.text or "").strip(), _UNITS.get(element.get("unit", "KiB"))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and unit):
        raise FormatError("the domain XML does not say its memory as a number of a known unit")
    return int(text) * unit


def _disks(root: Element) -> Iterator[DomainDisk]:
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        yield DomainDisk(
            device="" if target is None else target.get("dev", ""),
            kind=disk.get("device", "disk"),
            source="" if source is None else _source(source.attrib, disk.get("type", "")),
        )


def _source(said: Mapping[str, str], kind: str) -> str:
    """In whichever of its forms a source is said."""
    if kind == "volume":
        return f"{said.get('pool', '')}/{said.get('volume', '')}"
    if kind == "network":
        return f"{said.get('protocol', '')}:{said.get('name', '')}"
    return said.get(_SOURCES[kind], "") if kind in _SOURCES else kind
