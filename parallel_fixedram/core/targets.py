"""Targets: of which architectures guests can be saved, and what of theirs stands in a stream.

What is not known to give a file that a stock QEMU loads is refused. A QEMU does not tell the size of its target pages;
for Arm it follows from the machine type (MachineClass.minimum_page_bits), elsewhere it is fixed (target/*/cpu-param.h).
Seen in QEMU's own files, of every machine type that QEMU 10.0 has for these targets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from parallel_fixedram.core.errors import MachineError

RAM_ONLY_MACHINE = "parallel-fixedram"
"""Machine name of files that hold RAM and no device sections."""

_PAGE_BITS: Mapping[str, int | None] = {"x86_64": None, "i386": None, "aarch64": 12, "arm": 12}
"""By target, what a stream records: the page bits where they vary, nothing where they do not."""

_ARM_WITH_4K_PAGES = re.compile(r"virt-(?!2\.[67]$).+|sbsa-ref")
"""The machine types of Arm whose target pages have 4 KiB; all others of QEMU 10.0 have 1 KiB."""

_IN_ROUNDS = {
    "ppc64": "the hash table of the processor ('spapr/htab') is saved in rounds, outside the device sections",
    "s390x": "storage attributes ('s390-storage_attributes') are saved in rounds, outside the device sections",
}
"""Why not, where that is known."""


def check_target(target: str, machine: str) -> None:
    """Accept a guest by its architecture.

    Args:
        target: QEMU's name for it, such as ``aarch64``.
        machine: machine type such as ``virt-10.0``.

    Raises:
        MachineError: no guest of that target, or of that machine type, can be saved from outside.
    """
    if target not in _PAGE_BITS:
        reason = _IN_ROUNDS.get(target, "only x86_64, i386, aarch64 and arm are known to give a file that QEMU loads")
        raise MachineError(f"a guest of target {target!r} cannot be saved: {reason}")
    if _PAGE_BITS[target] is not None and not _ARM_WITH_4K_PAGES.fullmatch(machine):
        known = "of Arm's machines only virt (from 2.8 on) and sbsa-ref are known to have pages of 4 KiB"
        raise MachineError(f"machine type {machine!r} of target {target!r} cannot be saved: {known}")


def recorded_page_bits(target: str) -> int | None:
    """The target page bits that a stream has to record; None where QEMU expects none, and where there is no target."""
    return _PAGE_BITS.get(target)
