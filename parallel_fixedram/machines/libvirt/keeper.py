"""Keeper: what the guardian of a domain does; it has a connection of its own, opened before the domain is suspended."""

from __future__ import annotations

import contextlib
import time

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.machines.libvirt.library import Domain, library, open_domain

_TRY_SECONDS = 0.05
_MOST_SECONDS = 60.0
"""How long libvirt may be away, should it be restarted just then."""


class Keeper:
    """Lets a domain go on; used in the guardian's process only.

    Args:
        uri: of the connection to libvirt.
        uuid: of the domain.
    """

    def __init__(self, uri: str, uuid: str) -> None:
        self._uri = uri
        self._uuid = uuid
        self._opened: Domain | None = None

    def prepare(self) -> None:
        """Connect.

        Raises:
            FixedRamError: that cannot be done.
        """
        self._opened = open_domain(self._uri, self._uuid)

    def resume(self) -> None:
        """Let the domain go on, as soon as libvirt does that; anew where the connection is lost."""
        libvirt = library()
        end = time.monotonic() + _MOST_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(FixedRamError):
                opened = self._opened or open_domain(self._uri, self._uuid)
                try:
                    if opened.domain.isActive():
                        opened.domain.resume()
                    return
                except libvirt.libvirtError:
                    self._opened = None
            time.sleep(_TRY_SECONDS)
