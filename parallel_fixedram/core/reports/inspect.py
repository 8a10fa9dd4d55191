"""What a file says of itself, and what would be saved of a running QEMU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.reports.block import BlockReport
from parallel_fixedram.core.reports.libvirt import LibvirtImage


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBlock(BlockReport):
    """One RAMBlock, and where the file has what."""

    absent: bool
    """Whether the file has no pages of it: shared RAM of a QEMU with ``x-ignore-shared``."""
    record_offset: int
    """Of its record in the list of RAMBlocks."""
    address: int | None
    """Guest physical address, where the file says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """A section that is not RAM."""

    name: str
    instance_id: int
    version_id: int
    section_id: int
    offset: int
    length: int
    """Bytes, head and footer included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """What a file says of itself; offsets are absolute, in bytes."""

    verb: ClassVar[str] = "inspect"
    schema: ClassVar[str] = "inspect"

    file: str
    size: int
    offset: int
    """Where the stream starts."""
    stream_end: int
    machine: str
    """Machine type."""
    target: str | None
    """Architecture of the guest; only files of ours say it."""
    capabilities: tuple[str, ...]
    """Those that the file says are on."""
    uuid: str | None
    page_size: int
    ram_ended: bool
    """Whether the section with all bitmaps came to its end."""
    vm_description: bool
    digests: bool
    digest: str | None
    """Of everything in the file, by way of its digests, 16 hexadecimal digits: what clones know it by."""
    clone_offset: int
    """Where the clone stream is; 0 where there is none."""
    blocks: tuple[FileBlock, ...]
    devices: tuple[DeviceReport, ...]
    disks: tuple[Disk, ...] = ()
    """Disks whose images belong to the instant; none where the file says nothing of any."""
    libvirt: LibvirtImage | None = None
    """What libvirt's save image has in front of the stream; None in a file that is none."""
    warnings: tuple[str, ...]
    """What is unusual but legal, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuBlockReport:
    """A RAMBlock of a running QEMU, and how it is reached."""

    idstr: str
    host_page_size: int
    """Page size of the memory behind it, bytes."""
    used_length: int
    max_length: int
    address: int
    """Where it lies in QEMU's address space."""
    main: bool
    """Whether a memory backend is behind it, rather than firmware or a device."""
    read_only: bool
    memory: str
    """What kind of memory it is for us."""
    path: str
    """Of its file, where it has one."""
    data_pages: int
    """Pages that may hold something."""
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectQemuReport:
    """What would be saved of a running QEMU."""

    verb: ClassVar[str] = "inspect"
    schema: ClassVar[str] = "inspect_qemu"

    qmp: str
    pid: int
    qemu_version: str
    status: str
    """Its run state."""
    machine: str
    target: str
    capture: str
    """How ``save`` would capture it: ``snapshot``, ``compare`` or ``stopped``."""
    no_snapshot: str
    """Why not by a snapshot, as the end of a sentence; empty if by one."""
    blocks: tuple[QemuBlockReport, ...]
