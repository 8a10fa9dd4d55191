"""What trials of the snapshot have shown on this host: they decide whether ``auto`` may take one.

Remembered for each kernel, version of QEMU and accelerator: where one of these is another, nothing is known.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from parallel_fixedram.host import user_cache

_NAME = "snapshots.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a trial holds for.

    Attributes:
        qemu: its version.
        kvm: whether the guest runs under KVM; otherwise its code is translated (TCG).
    """

    qemu: str
    kvm: bool

    @property
    def accelerator(self) -> str:
        """By QEMU's name."""
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
        """The outcome of the last trial; None where there was none."""
        found = user_cache.read(_NAME).get(self._key)
        return found if isinstance(found, bool) else None

    @property
    def unproven(self) -> str:
        """Why a snapshot is taken only where it is asked for by name, as the end of a sentence; empty if it is not so.

        KVM writes guest memory in the kernel, whose faults should wait as well: no machine at hand could show that.
        """
        if self.passed is False:
            return "a trial on this host has found wrong pages in snapshots (try-capture)"
        if self.kvm and self.passed is None:
            return "the guest runs under KVM, with which nobody has tried it on this host (try-capture does)"
        return ""


def _host() -> str:
    """The machine: a home folder may be that of many (machine-id(5))."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open("/etc/machine-id", encoding="ascii") as file:
        return file.read().strip()
    return os.uname().nodename
