"""How much more memory a process may take before the control groups it is in have the kernel take some from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_FILES = {
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes"),
    "cgroup2": (("memory.high", "memory.max"), "memory.current"),
}
"""By file system: limits, and what is in use, bytes (Linux: Documentation/admin-guide/cgroup-v{1/memory,2}.rst)."""

_NO_LIMIT = 1 << 60
"""Version 1 has a number of bytes for it that is larger than this, version 2 a word."""


def memory_room(pid: int) -> int | None:
    """Bytes that the process may still take, by the tightest of its control groups; None where nothing limits it.

    What cannot be read limits nothing.
    """
    rooms = []
    for folder, (limits, usage) in _groups(pid):
        for name in limits:
            with contextlib.suppress(OSError, ValueError):
                limit = _number(os.path.join(folder, name))
                if limit < _NO_LIMIT:
                    rooms.append(max(0, limit - _number(os.path.join(folder, usage))))
    return min(rooms, default=None)


def swapped_bytes(pid: int) -> int:
    """Private memory of the process that is in swap, bytes; 0 where that cannot be read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("VmSwap:"):
                return int(line.split()[1]) << 10
    return 0


def _groups(pid: int) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
    """Folders of the control groups for memory that the process is in, up to the root, and what to read there."""
    mounts = dict(_mounts())
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            kind = "cgroup2" if not controllers else "cgroup" if "memory" in controllers.split(",") else ""
            if kind not in mounts or ".." in path:
                continue
            while path.strip("/"):
                yield mounts[kind] + path, _FILES[kind]
                path = os.path.dirname(path)


def _mounts() -> Iterator[tuple[str, str]]:
    """Where control groups for memory are mounted, by file system."""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, point, kind, options, *_ = line.split(" ")
            if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
                yield kind, point


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
