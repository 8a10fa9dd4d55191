"""Facts about the host that a result cannot be judged without."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil


def host_facts(path: str) -> dict[str, Any]:
    """CPU, memory, kernel, versions, and the file system that ``path`` lies on.

    Returns:
        A JSON object; bytes are integers; null for what the system does not tell.
    """
    mount = _or_none(lambda: _mount_of(os.path.realpath(path)))
    return {
        "cpus": _or_none(lambda: psutil.cpu_count(logical=True)),
        "memory": _or_none(lambda: psutil.virtual_memory().total),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "file_system": mount.fstype if mount else None,
        "mount_options": mount.opts if mount else None,
    }


def _or_none(fact: Callable[[], Any]) -> Any:
    """The fact, or None: a finished save does not fail because /proc cannot be read."""
    try:
        return fact()
    except (OSError, RuntimeError, ValueError, psutil.Error):
        return None


def _mount_of(path: str) -> Any:
    """The mounted file system that holds ``path``: the longest mount point that is a prefix of it."""
    mounts = [m for m in psutil.disk_partitions(all=True) if os.path.commonpath((m.mountpoint, path)) == m.mountpoint]
    return max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
