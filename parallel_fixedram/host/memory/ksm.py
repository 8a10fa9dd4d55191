"""Kernel samepage merging: pages that it merges lose their write protection, and nobody is told.

A page of private memory is merged if its owner allows that (MADV_MERGEABLE, set by QEMU's machine property mem-merge,
which is on by default), another page has the same contents, and the host merges pages at all. The merged page has no
userfaultfd mark (Linux 6.18: mm/ksm.c, replace_page), so the next write passes; tests/host/test_ksm.py shows it. Shared
memory and hugetlbfs pages are never merged.
"""

from __future__ import annotations

import re
from pathlib import Path

from parallel_fixedram.host.memory.process_maps import refusal

_KSM = Path("/sys/kernel/mm/ksm")
_COUNTERS = ("pages_scanned", "full_scans")


def is_merging() -> bool:
    """Whether this host is looking for pages to merge now."""
    return _number("run") == 1


def scans() -> tuple[int, ...]:
    """Counters that stay the same as long as nothing is merged anywhere on this host.

    If two calls return the same, and ``is_merging`` is false at both times, no page lost its protection in between.
    """
    return tuple(_number(name) for name in _COUNTERS)


def is_mergeable(pid: int, start: int, length: int) -> bool:
    """Whether any of this memory of a process may be merged.

    Raises:
        MachineError: the process has ended.
        HostError: we lack the right to look.
    """
    end = start + length
    try:
        text = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise refusal(pid, error, f"cannot read the memory map of process {pid}") from error
    within = False
    for line in text.splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(head[1], 16) < end and int(head[2], 16) > start
        elif within and line.startswith("VmFlags:") and "mg" in line.split():
            return True
    return False


def _number(name: str) -> int:
    try:
        return int((_KSM / name).read_text())
    except (OSError, ValueError):  # a kernel without it, or without this counter
        return 0
