"""What a libvirt save image says in front of QEMU's stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtDisk:
    """A disk as the domain's XML has it."""

    device: str
    """What the guest knows it by, such as ``vda``."""
    kind: str
    """``disk``, ``cdrom``, ``floppy`` or ``lun``."""
    source: str
    """A path, ``POOL/VOLUME``, ``PROTOCOL:NAME``, or what kind of source it is (``nvme``); empty without a medium."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtImage:
    """Header and XML of a save image; what it says of the domain is as its XML has it, edited or not."""

    complete: bool
    """Whether whoever wrote the image came to its end."""
    format: str
    """What stands behind the XML: ``sparse``, ``raw``, or a compression."""
    running: bool
    """Whether the domain ran when it was saved, and will after ``virsh restore``."""
    domain: str
    """Its name."""
    uuid: str
    """Empty where the XML does not say it."""
    memory: int
    """Bytes; 0 where the XML does not say it."""
    disks: tuple[LibvirtDisk, ...]
    xml_bytes: int
    xml_room: int
    """How many bytes XML and cookie may have, their NULs included: ``virsh save-image-edit`` cannot make more of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectLibvirtReport:
    """A save image whose pages cannot be read: it is not complete, or not of the format ``sparse``."""

    verb: ClassVar[str] = "inspect"
    schema: ClassVar[str] = "inspect_libvirt"

    file: str
    size: int
    libvirt: LibvirtImage
    warnings: tuple[str, ...]
    """Why nothing but ``inspect`` takes it, and what to do."""
