"""Facts about the host, without which a result cannot be judged."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from parallel_fixedram.host import linux

T = TypeVar("T")

_FILE_SYSTEMS = {
    0xEF53: "ext4",  # ext2 and ext3 have the same number
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    linux.TMPFS_MAGIC: "tmpfs",
    0x794C7630: "overlay",
    0x6969: "nfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0x65735546: "fuse",
    0xFF534D42: "cifs",
    0x01021997: "9p",
    linux.HUGETLBFS_MAGIC: "hugetlbfs",
}
"""Numbers from linux/magic.h and the file systems' own sources."""


_OPTIONS = (
    (os.ST_NOSUID, "nosuid"),
    (os.ST_NODEV, "nodev"),
    (os.ST_NOEXEC, "noexec"),
    (os.ST_SYNCHRONOUS, "sync"),
    (os.ST_NOATIME, "noatime"),
    (os.ST_RELATIME, "relatime"),
)


class Mount(NamedTuple):
    """A line of /proc/self/mounts."""

    point: str
    file_system: str
    options: str


def host_facts(path: str) -> dict[str, Any]:
    """CPU, memory, kernel, versions, and the file system that ``path`` lies on.

    Returns:
        A JSON object. Sizes are integers, in bytes; what the system does not tell is null.
    """
    mount = _or_none(lambda: find_mount(os.path.realpath(path), _mounts()))
    return {
        "cpus": os.cpu_count(),
        "memory": memory_bytes("MemTotal"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "file_system": mount.file_system if mount else _or_none(lambda: _file_system_by_number(path)),
        "mount_options": mount.options if mount else _or_none(lambda: _options_by_flags(path)),
    }


def memory_bytes(what: str) -> int | None:
    """A figure from /proc/meminfo in bytes, such as ``MemTotal``; None if the system does not tell."""
    return _or_none(lambda: _meminfo()[what])


def free_huge_bytes() -> int | None:
    """Bytes of huge pages of the usual size that nobody has; None if the system does not tell."""
    return _or_none(lambda: _meminfo()["HugePages_Free"] // 1024 * _meminfo()["Hugepagesize"])  # the first is a count


def _meminfo() -> dict[str, int]:
    with open("/proc/meminfo", encoding="ascii") as file:
        return {name: int(figure.split()[0]) * 1024 for name, figure in (line.split(":") for line in file)}


def _or_none(fact: Callable[[], T]) -> T | None:
    """The fact, or None: a finished save must not fail because /proc cannot be read."""
    try:
        return fact()
    except (OSError, RuntimeError, LookupError, ValueError):
        return None


def _mounts() -> list[str]:
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        return file.readlines()


def find_mount(path: str, mounts: Iterable[str]) -> Mount | None:
    """The mount that a path is on: its mount point is the longest prefix of the path, and among equals the last.

    Args:
        path: absolute, without links.
        mounts: lines of /proc/self/mounts.
    """
    found = None
    for line in mounts:
        mount = Mount(*(_unescaped(each) for each in line.split(" ")[1:4]))
        inside = os.path.commonpath((mount.point, path)) == mount.point
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def _file_system_by_number(path: str) -> str:
    """The file system of ``path`` according to statfs(2): in a chroot no mount point may be a prefix of the path."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_PATH | os.O_CLOEXEC)
    with linux.closing(fd):
        number = linux.file_system_magic(fd)
    return _FILE_SYSTEMS.get(number, f"{number:#x}")


def _options_by_flags(path: str) -> str:
    """The mount options of ``path`` that statvfs(3) knows: those that all file systems have in common."""
    flags = os.statvfs(os.path.dirname(os.path.abspath(path))).f_flag
    return ",".join(["ro" if flags & os.ST_RDONLY else "rw", *(name for bit, name in _OPTIONS if flags & bit)])


def _unescaped(field: str) -> str:
    """Decode a field as getmntent(3) does: blanks and backslashes are written as ``\\040`` and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
