"""``inspect``: describe a file, or what a save of a running QEMU would contain."""

from __future__ import annotations

from parallel_fixedram.core.reports.inspect import InspectQemuReport, InspectReport
from parallel_fixedram.core.reports.libvirt import InspectLibvirtReport
from parallel_fixedram.core.uri import parse_uri
from parallel_fixedram.image.describe import describe
from parallel_fixedram.image.libvirt import describe_without_pages
from parallel_fixedram.verbs.open import open_image, open_qemu


def inspect(uri: str) -> InspectReport | InspectLibvirtReport:
    """Describe a mapped-ram file, or a libvirt save image in any format; no page is read.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``.

    Raises:
        FormatError: it is neither, or contradicts itself.
        RequestError: it is not a file.
        HostError: it cannot be read.
    """
    target = parse_uri(uri)
    if not target.offset and (report := describe_without_pages(target.path)):
        return report
    with open_image(uri) as image:
        return describe(image)


def inspect_qemu(socket_path: str, *, pid: int | None = None, timeout: float | None = None) -> InspectQemuReport:
    """Describe what a save of a running QEMU would contain, and how each block is reached; its guest is not stopped.

    Arguments and errors are those of ``open_qemu``.
    """
    from parallel_fixedram.machines.qemu.describe import describe as describe_qemu

    with open_qemu(socket_path, pid=pid, timeout=timeout) as machine:
        return describe_qemu(machine)
