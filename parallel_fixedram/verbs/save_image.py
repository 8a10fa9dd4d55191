"""The kind of file that a machine is saved into."""

from __future__ import annotations

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.core.save_options import ImageKind
from parallel_fixedram.core.uri import FileTarget
from parallel_fixedram.format.libvirt_image import compose_libvirt_header


def head_for(machine: Machine, target: FileTarget, kind: ImageKind | None, *, runs: bool) -> bytes:
    """What precedes the stream; empty in a plain file.

    Args:
        machine: to be saved.
        target: where it is saved; libvirt's images always begin at offset 0.
        kind: what was requested; None to choose automatically.
        runs: whether the machine runs, and so shall run after ``virsh restore``.

    Raises:
        RequestError: the machine cannot be saved into such a file.
        MachineError: the machine is gone.
    """
    if kind is ImageKind.PLAIN or (kind is None and target.offset):
        return b""
    if xml := machine.definition():
        return compose_libvirt_header(xml, runs)
    if kind is ImageKind.LIBVIRT:
        raise RequestError("only a libvirt domain has the XML that a libvirt save image needs")
    return b""
