"""Describe the head of a libvirt save image as reports show it, even if the image has no pages that we can read."""

from __future__ import annotations

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.reports.libvirt import InspectLibvirtReport, LibvirtImage
from parallel_fixedram.format.libvirt_domain import read_domain
from parallel_fixedram.format.libvirt_image import LibvirtHeader, is_libvirt_image, read_libvirt_header
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, open_readable


def describe_header(header: LibvirtHeader) -> LibvirtImage:
    """Describe header and XML.

    Raises:
        FormatError: the XML does not describe a domain.
    """
    domain = read_domain(header.xml)
    return LibvirtImage(
        complete=header.complete,
        format=header.format.name.lower(),
        running=header.running,
        domain=domain.name,
        uuid=domain.uuid,
        memory=domain.memory,
        disks=domain.disks,
        xml_bytes=len(header.xml),
        xml_room=header.room,
    )


def describe_without_pages(path: str) -> InspectLibvirtReport | None:
    """Describe a save image of which only header and XML can be read; None for any other file.

    Raises:
        FormatError: the header contradicts itself, or the XML does not describe a domain.
        RequestError: it is not a file.
        HostError: it cannot be read.
    """
    fd = open_readable(path, or_device=True)
    try:
        channel = FileChannel(fd, path)
        if not is_libvirt_image(channel.bytes_at):
            return None
        size = channel.size()
        header = read_libvirt_header(channel.bytes_at, size)
        if not (why := header.without_pages):
            return None
        return InspectLibvirtReport(file=path, size=size, libvirt=describe_header(header), warnings=(why,))
    except FormatError as error:
        raise error.in_file(path) from error
    finally:
        linux.close(fd)
