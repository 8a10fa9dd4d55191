"""Control groups of a process, of either version (Linux: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PROC = "/proc"


def control_groups(pid: int | str, controller: str, *, proc: str = PROC) -> Iterator[tuple[str, str]]:
    """Folders of the control groups that a process is in, up to the root; none if they cannot be read.

    In a container the root is the container's own group, limits included.

    Args:
        pid: the process, or ``self``.
        controller: such as ``memory``; groups of version 2 always count.
        proc: where /proc is.

    Returns:
        Each folder with the type of its file system: ``cgroup`` (version 1) or ``cgroup2``.
    """
    mounts = {kind: (point, root) for kind, point, root in _mounts(controller, proc)}
    with (
        contextlib.suppress(OSError),
        open(f"{proc}/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file,
    ):
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            kind = "cgroup2" if not controllers else "cgroup" if controller in controllers.split(",") else ""
            if kind not in mounts or ".." in path:
                continue
            point, root = mounts[kind]
            if os.path.commonpath((root, path)) != root:  # not part of what is mounted here
                continue
            inside = os.path.relpath(path, root)
            while inside not in ("", "."):
                yield os.path.join(point, inside), kind
                inside = os.path.dirname(inside)
            yield point, kind


def _mounts(controller: str, proc: str) -> Iterator[tuple[str, str, str]]:
    """Where such control groups are mounted: file system, mount point, and the group that is mounted there."""
    with (
        contextlib.suppress(OSError),
        open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file,
    ):
        for line in file:
            mount, _, system = line.partition(" - ")
            _, _, _, root, point, *_ = mount.split(" ")
            kind, _, options = system.split(" ", 2)
            if kind == "cgroup2" or (kind == "cgroup" and controller in options.strip().split(",")):
                yield kind, point, root
