"""What kind of file a machine is saved into."""

from __future__ import annotations

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.core.save_options import ImageKind
from parallel_fixedram.core.uri import FileTarget
from parallel_fixedram.format.libvirt_image import compose_libvirt_header


def head_for(machine: Machine, target: FileTarget, kind: ImageKind | None, *, runs: bool) -> bytes:
    """What stands in front of the stream; empty in a plain file.

    Args:
        machine: that is saved.
        target: where to; libvirt's images begin where their file does.
        kind: what was asked for.
        runs: whether the machine runs, and shall after ``virsh restore``.

    Raises:
        RequestError: it cannot be such a file.
        MachineError: the machine is gone.
    """
    if kind is ImageKind.PLAIN or (kind is None and target.offset):
        return b""
    if xml := machine.definition():
        return compose_libvirt_header(xml, runs)
    if kind is ImageKind.LIBVIRT:
        raise RequestError("only a domain of libvirt has the XML that a save image of libvirt needs")
    return b""
