"""What identifies a libvirt domain to people, read from its XML: name, UUID, memory, disks.

The XML is untrusted. A document type declaration is refused, and with it every entity; so is nesting deeper than any
domain needs. Whoever reads the XML from a file limits its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.reports.libvirt import LibvirtDisk

MAX_DEPTH = 100
MAX_DISKS = 1000

_UNITS = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20,
    "GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40,
}  # fmt: skip
"""Units of ``<memory>`` (libvirt: docs/formatdomain.rst); the default is KiB."""

_SOURCES = {"file": "file", "block": "dev", "dir": "dir"}
"""Type of a disk -> the attribute of its ``<source>`` that holds the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDefinition:
    """A domain as its XML describes it. Text is untrusted, and may contain any character that XML allows."""

    name: str
    uuid: str
    """Empty if the XML has none."""
    memory: int
    """Bytes; 0 if the XML does not say."""
    disks: tuple[LibvirtDisk, ...]


def read_domain(xml: bytes) -> DomainDefinition:
    """Read a domain's XML.

    Args:
        xml: a whole document, such as ``virsh dumpxml`` prints.

    Raises:
        FormatError: it is not the well-formed XML of a domain, or has a document type.
    """
    root = _parse(xml)
    name = (root.findtext("name") or "").strip()
    if root.tag != "domain" or not name:
        raise FormatError("the XML does not describe a libvirt domain: expected a <domain> with a <name>")
    disks = tuple(_disks(root))
    if len(disks) > MAX_DISKS:
        raise FormatError(f"the domain XML has {len(disks)} disks, at most {MAX_DISKS}")
    return DomainDefinition(name=name, uuid=(root.findtext("uuid") or "").strip(), memory=_memory(root), disks=disks)


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
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: unknown encodings
        raise FormatError(f"the domain XML is not well-formed: {error}") from None
    return builder.close()


def _memory(root: Element) -> int:
    element = root.find("memory")
    if element is None:
        return 0
    text, unit = (element.text or "").strip(), _UNITS.get(element.get("unit", "KiB"))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and unit):
        raise FormatError("the domain XML does not give its memory as a number with a known unit")
    return int(text) * unit


def _disks(root: Element) -> Iterator[LibvirtDisk]:
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        yield LibvirtDisk(
            device="" if target is None else target.get("dev", ""),
            kind=disk.get("device", "disk"),
            source="" if source is None else _source(source.attrib, disk.get("type", "")),
        )


def _source(said: Mapping[str, str], kind: str) -> str:
    """The source of a disk of this type, from the attributes of its ``<source>``."""
    if kind == "volume":
        return f"{said.get('pool', '')}/{said.get('volume', '')}"
    if kind == "network":
        return f"{said.get('protocol', '')}:{said.get('name', '')}"
    return said.get(_SOURCES[kind], "") if kind in _SOURCES else kind
