"""How much more memory a process may take before the kernel reclaims some of it, or kills it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.units import format_size
from parallel_fixedram.host.control_groups import PROC, control_groups
from parallel_fixedram.host.facts import memory_bytes

_FILES = {
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes"),
    "cgroup2": (("memory.high", "memory.max"), "memory.current"),
}
"""Type of file system -> files with limits, and with current use, bytes (Linux: Documentation/admin-guide/cgroup-v1,
memory.rst, and cgroup-v2.rst)."""

_NO_LIMIT = 1 << 60
"""Version 1 says "no limit" by a number of bytes above this one, version 2 by a word."""


def memory_room(pid: int, *, proc: str = PROC) -> int | None:
    """Bytes that the process may still take, by the tightest of its control groups; None if nothing limits it.

    A limit that cannot be read is ignored.

    Args:
        pid: the process.
        proc: where /proc is.
    """
    rooms = []
    for folder, (limits, usage) in _groups(pid, proc):
        for name in limits:
            with contextlib.suppress(OSError, ValueError):
                limit = _number(os.path.join(folder, name))
                if limit < _NO_LIMIT:
                    rooms.append(max(0, limit - _number(os.path.join(folder, usage))))
    return min(rooms, default=None)


def memory_until_killed(pid: int, *, proc: str = PROC) -> int | None:
    """Bytes that the process may still take before the kernel kills something; None if there is no such limit.

    Unlike in ``memory_room``, which takes the same arguments, only hard limits count, and cached files count as free.
    """
    rooms = []
    for folder, (limits, usage) in _groups(pid, proc):
        with contextlib.suppress(OSError, ValueError):
            limit = _number(os.path.join(folder, limits[-1]))
            if limit < _NO_LIMIT:
                rooms.append(max(0, limit - _number(os.path.join(folder, usage)) + _cached(folder)))
    return min(rooms, default=None)


def check_memory(needed: int, what: str, *, hint: str = "") -> None:
    """Refuse to take so much memory that the kernel would kill processes.

    Args:
        needed: bytes that this process, or its forks, will take.
        what: the beginning of a sentence that says what needs how much.
        hint: what to do if there is not enough.

    Raises:
        HostError: not as much memory is available.
    """
    for available, where in (
        (memory_bytes("MemAvailable"), ""),
        (memory_until_killed(os.getpid()), " to this control group"),
    ):
        if available is not None and needed > available:
            raise HostError(f"{what}, but only {format_size(available)} of memory is available{where}", hint=hint)


def _cached(folder: str) -> int:
    """Bytes of cached files that are charged to a control group or to one below it."""
    with open(os.path.join(folder, "memory.stat"), encoding="ascii") as file:
        found = dict(line.split() for line in file)
    names = ("inactive_file", "active_file")
    return sum(int(found.get(f"total_{name}", found.get(name, 0))) for name in names)  # total_: version 1


def swapped_bytes(pid: int) -> int:
    """Private memory of the process that is in swap, bytes; 0 if that cannot be read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("VmSwap:"):
                return int(line.split()[1]) << 10
    return 0


def _groups(pid: int, proc: str) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
    """Folders of the process's memory control groups, up to the root, with the files to read in each."""
    return ((folder, _FILES[kind]) for folder, kind in control_groups(pid, "memory", proc=proc))


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
