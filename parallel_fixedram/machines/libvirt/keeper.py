"""Keeper: what a domain's guardian does. It has its own connection, opened before the domain is suspended.

Our last request to suspend the domain may still be on its way when we have ended: in the bridge, which carries it out
before it ends, or in libvirt, if the bridge was killed as well. So the keeper waits for the bridge's end, and goes on
resuming the domain for a while.
"""

from __future__ import annotations

import contextlib
import time

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.host.processes import forked
from parallel_fixedram.machines.libvirt.library import Domain, library, open_domain

_BRIDGE_SECONDS = 5.0
_TRY_SECONDS = 0.05
_LOOK_SECONDS = 1.0
"""How long libvirt may take to begin a request whose sender is gone."""
_MOST_SECONDS = 60.0
"""How long libvirt may be away, if it is being restarted just then."""


class Keeper:
    """Resumes a domain; used in the guardian's process only.

    Args:
        uri: of the connection to libvirt.
        uuid: of the domain.
        bridge: descriptor of the process that suspends it.
    """

    def __init__(self, uri: str, uuid: str, bridge: int) -> None:
        self._uri = uri
        self._uuid = uuid
        self._bridge = bridge
        self._opened: Domain | None = None

    def prepare(self) -> None:
        """Connect.

        Raises:
            FixedRamError: libvirt cannot be reached.
        """
        self._opened = open_domain(self._uri, self._uuid)

    def resume(self) -> None:
        """Resume the domain as soon as libvirt does so; if the connection is lost, connect again."""
        forked.has_ended(self._bridge, _BRIDGE_SECONDS)
        done, end = 0.0, time.monotonic() + _MOST_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(FixedRamError):
                self._opened = self._opened or open_domain(self._uri, self._uuid)
                if not self._resumed(self._opened):
                    self._opened = None
                elif not done:
                    done = time.monotonic()
                    end = done + _LOOK_SECONDS
            time.sleep(_TRY_SECONDS)

    def _resumed(self, opened: Domain) -> bool:
        """Whether the domain is running now, or gone."""
        libvirt = library()
        try:
            opened.domain.resume()
        except libvirt.libvirtError as error:
            return bool(error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN))
        return True
