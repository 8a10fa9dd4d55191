"""FdSet: descriptors that a QEMU has copies of, and opens as ``/dev/fdset/N``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import FixedRamError

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

OPAQUE = "parallel-fixedram"
"""The note on our descriptors, for whoever lists them."""

_GOODBYE_SECONDS = 1.0


class FdSet(Closing):
    """A set of descriptors; a context manager.

    QEMU closes its copies when the set is closed, or the last session ends, and nothing uses them any more.

    Args:
        monitor: of the QEMU.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._number: int | None = None

    @property
    def path(self) -> str:
        """What QEMU opens; it takes the descriptor of the set that is open in just the way it wants."""
        return f"/dev/fdset/{self._number}"

    def add(self, fd: int) -> None:
        """Give QEMU a copy of a descriptor, which stays open here.

        Raises:
            MachineError: as for ``Monitor.execute``.
        """
        which = {} if self._number is None else {"fdset-id": self._number}
        answer = self._monitor.execute("add-fd", {"opaque": OPAQUE, **which}, fd=fd)
        if not isinstance(answer, dict) or not isinstance(number := answer.get("fdset-id"), int):
            raise self._monitor.malformed("add-fd", answer)
        self._number = number

    def number_in_qemu(self) -> int:
        """What QEMU's process has for the first descriptor of the set.

        Raises:
            MachineError: as for ``Monitor.execute``.
        """
        answer = self._monitor.execute("query-fdsets")
        try:
            return next(int(each["fds"][0]["fd"]) for each in answer if each["fdset-id"] == self._number)
        except (LookupError, TypeError, ValueError, StopIteration):
            raise self._monitor.malformed("query-fdsets", answer) from None

    def close(self) -> None:
        """Take the descriptors back; more than once does no harm.

        A courtesy: not worth a long wait, and an error here must not replace the one that brought us here.
        """
        number, self._number = self._number, None
        if number is not None:
            with contextlib.suppress(FixedRamError):
                self._monitor.execute("remove-fd", {"fdset-id": number}, timeout=_GOODBYE_SECONDS)
