"""Which libvirt a domain is looked for in: a connection URI, if its domains run on this host."""

from __future__ import annotations

import re

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.words import shown

SYSTEM = "qemu:///system"
"""The libvirt of the host, which is asked if nobody says otherwise."""

_URI = re.compile(r"(?P<driver>[^:/+]+)(?:\+(?P<transport>[^:/]+))?://(?P<host>[^/?]*)(?P<path>/[^?]*)?(?:\?.*)?")
_PATHS = ("/system", "/session")
_EXPECTED = "expected qemu:///system or qemu:///session"


def local_uri(text: str) -> str:
    """A connection URI, if its domains are QEMUs of this host (libvirt docs/uri.rst).

    Raises:
        RequestError: it is not one, or leads to another host or another hypervisor.
    """
    match = _URI.fullmatch(text)
    if not match:
        raise RequestError(f"{shown(text)!r} is not a connection URI of libvirt: {_EXPECTED}")
    if match["host"] or match["transport"] not in (None, "unix"):
        raise RequestError(
            f"{shown(text)!r} leads to another host: the memory of a domain can only be read on its own host",
            hint="run this command there, with --connect qemu:///system",
        )
    if match["driver"] != "qemu" or match["path"] not in _PATHS:
        raise RequestError(f"{shown(text)!r}: only domains of QEMU can be saved: {_EXPECTED}")
    return text
