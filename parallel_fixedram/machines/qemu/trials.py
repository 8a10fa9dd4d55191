"""Outcomes of snapshot trials on this host, which decide whether ``auto`` may take a snapshot.

They are remembered for each combination of kernel, QEMU version and accelerator, and say nothing about another one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from parallel_fixedram.host import user_cache

_NAME = "snapshots.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The conditions that a trial is valid for, besides host and kernel.

    Attributes:
        qemu: QEMU's version.
        kvm: whether the guest runs under KVM, and not TCG.
    """

    qemu: str
    kvm: bool

    @property
    def accelerator(self) -> str:
        """QEMU's name for the accelerator."""
        return "kvm" if self.kvm else "tcg"

    @property
    def _key(self) -> str:
        return " ".join((_host(), os.uname().release, self.qemu, self.accelerator))

    def remember(self, *, passed: bool) -> bool:
        """Keep the outcome of a trial; returns whether that was possible."""
        known = {name: value for name, value in user_cache.read(_NAME).items() if isinstance(value, bool)}
        user_cache.write(_NAME, {**known, self._key: passed})
        return self.passed is passed

    @property
    def passed(self) -> bool | None:
        """The outcome of the last trial; None if there was none."""
        found = user_cache.read(_NAME).get(self._key)
        return found if isinstance(found, bool) else None

    @property
    def unproven(self) -> str:
        """Why ``auto`` must not take a snapshot, as the end of a sentence; empty if it may.

        KVM writes to guest memory in the kernel. Its faults should wait as well, but that needs a trial on each host.
        """
        if self.passed is False:
            return "a trial on this host found wrong pages in snapshots (try-capture)"
        if self.kvm and self.passed is None:
            return "the guest runs under KVM, with which it was never tried on this host (try-capture does that)"
        return ""


def _host() -> str:
    """Identifies the host, because several may share a home folder (machine-id(5))."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open("/etc/machine-id", encoding="ascii") as file:
        return file.read().strip()
    return os.uname().nodename
