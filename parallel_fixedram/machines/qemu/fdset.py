"""FdSet: descriptors that we pass to a QEMU, which opens them as ``/dev/fdset/N``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import FixedRamError

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

OPAQUE = "parallel-fixedram"
"""A note on our descriptors, which QEMU shows when it lists them."""

_GOODBYE_SECONDS = 1.0


class FdSet(Closing):
    """A set of descriptors; a context manager.

    QEMU closes its copies once the set is closed or the last session has ended, and nothing uses them any more.

    Args:
        monitor: of the QEMU.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._number: int | None = None

    @property
    def path(self) -> str:
        """The path for QEMU to open; it picks the descriptor of the set that has the access mode it wants."""
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
        """The number of the set's first descriptor in QEMU's process.

        Raises:
            MachineError: as for ``Monitor.execute``.
        """
        answer = self._monitor.execute("query-fdsets")
        try:
            return next(int(each["fds"][0]["fd"]) for each in answer if each["fdset-id"] == self._number)
        except (LookupError, TypeError, ValueError, StopIteration):
            raise self._monitor.malformed("query-fdsets", answer) from None

    def close(self) -> None:
        """Take the descriptors back; may be called more than once.

        This is a courtesy: it is not worth a long wait, and an error here must not hide the one that led here.
        """
        number, self._number = self._number, None
        if number is not None:
            with contextlib.suppress(FixedRamError):
                self._monitor.execute("remove-fd", {"fdset-id": number}, timeout=_GOODBYE_SECONDS)
