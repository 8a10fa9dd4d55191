"""Describe a file and its blocks as reports show them."""

from __future__ import annotations

import uuid
from dataclasses import asdict

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.reports.block import BlockReport
from parallel_fixedram.core.reports.inspect import DeviceReport, FileBlock, InspectReport
from parallel_fixedram.core.reports.libvirt import LibvirtImage
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.libvirt import describe_header


def describe(image: Image) -> InspectReport:
    """Describe a file.

    Raises:
        FormatError: a bitmap has bits after the last page; or libvirt's XML does not describe a domain.
    """
    file, configuration = image.file, image.file.configuration
    return InspectReport(
        file=image.path,
        size=file.size,
        offset=file.base,
        stream_end=file.stream_end,
        machine=configuration.machine,
        target=file.target or None,
        capabilities=tuple(configuration.capabilities),
        uuid=str(uuid.UUID(bytes=configuration.uuid)) if configuration.uuid else None,
        page_size=file.page_size,
        ram_ended=file.ram_ended,
        vm_description=file.has_vmdesc,
        digests=file.trailer is not None,
        digest=file.digest,
        clone_offset=file.trailer.clone_offset if file.trailer else 0,
        blocks=tuple(_describe_block(image, saved) for saved in file.blocks),
        devices=tuple(DeviceReport(**asdict(device)) for device in file.devices),
        disks=image.disks,
        libvirt=_describe_libvirt(image),
        warnings=file.warnings,
    )


def _describe_libvirt(image: Image) -> LibvirtImage | None:
    try:
        return describe_header(image.file.libvirt) if image.file.libvirt else None
    except FormatError as error:
        raise error.in_file(image.path) from error


def block_reports(image: Image) -> tuple[BlockReport, ...]:
    """The stored blocks with their numbers of pages."""
    return tuple(block_report(saved, image.bitmap(saved.block.idstr).count()) for saved in image.blocks)


def block_report(saved: SavedBlock, data_pages: int) -> BlockReport:
    """A block as reports show it."""
    return BlockReport(
        idstr=saved.block.idstr,
        used_length=saved.block.used_length,
        page_size=saved.block.page_size,
        pages=saved.block.pages,
        data_pages=data_pages,
        zero_pages=saved.block.pages - data_pages,
        bitmap_offset=saved.header.bitmap_offset,
        pages_offset=saved.header.pages_offset,
    )


def _describe_block(image: Image, saved: SavedBlock) -> FileBlock:
    data_pages = 0 if saved.absent else image.bitmap(saved.block.idstr).count()
    return FileBlock(
        **asdict(block_report(saved, data_pages)),
        absent=saved.absent,
        record_offset=saved.record_offset,
        address=saved.address,
    )
