"""Sync a running QEMU's disks from outside just before it is stopped.

QEMU's ``stop`` waits for all requests of its block devices and then flushes each device (QEMU system/cpus.c,
do_vm_stop: bdrv_drain_all, bdrv_flush_all), while the guest already stands still. With a few GiB of the guest's writes
in the host's page cache that takes seconds. What was synced before does not have to be flushed then.

QEMU's names for the files do not tell which files they are: they may be relative to a folder that QEMU has left, pseudo
names (``json:``, ``/dev/fdset/N``), removed, or from another mount namespace. So we only ask QEMU whether there are
any, and which it would not flush; as files we take those that it has open for reading and writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.host.files.open_files import sync_open_files, written_files
from parallel_fixedram.machines.qemu.monitor import Monitor

MOST_SECONDS = 30.0
"""How long syncing may take; QEMU flushes the rest when it stops."""

_LOCAL = ("file", "host_device")
"""Block drivers that leave what they write in this host's page cache (QEMU block/file-posix.c)."""

_ELSEWHERE = ("gluster", "iscsi", "nbd", "nfs", "rbd", "ssh")
"""Block drivers whose server carries out a flush."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A block node that is written to."""

    name: str
    driver: str
    file: str
    flushed: bool


def sync_disks(monitor: Monitor, pid: int) -> list[str]:
    """Put on stable storage what the guest has written to its disks so far.

    Args:
        monitor: of the QEMU.
        pid: its process.

    Returns:
        A sentence for each disk that could not be synced, with the reason.

    Raises:
        MachineError: QEMU does not list its disks, or has ended.
    """
    nodes = [*_written_nodes(monitor)]
    notes = [
        f"disk {each.name!r} is accessed by {each.driver}: it cannot be synced from here before the guest is stopped"
        for each in nodes
        if each.driver in _ELSEWHERE and each.flushed
    ]
    if not any(each.driver in _LOCAL and each.flushed for each in nodes):
        return notes
    never = [each.file for each in nodes if not each.flushed]
    try:
        files = {fd: path for fd, path in written_files(pid).items() if not any(_is(path, name) for name in never)}
        failed = sync_open_files(pid, files, MOST_SECONDS) if files else []
    except FixedRamError as error:
        failed = [error.message]
    return [*notes, *(f"before the guest is stopped, disk {each}" for each in failed)]


def _written_nodes(monitor: Monitor) -> Iterator[_Node]:
    answer = monitor.execute("query-named-block-nodes", {"flat": True})
    for each in answer if isinstance(answer, list) else [answer]:
        match each:
            case {"ro": True}:
                continue
            case {
                "node-name": str(name),
                "drv": str(driver),
                "file": str(file),
                "ro": False,
                "cache": {"no-flush": bool(no_flush)},
            }:
                yield _Node(name, driver, file, not no_flush)
            case _:
                raise monitor.malformed("query-named-block-nodes", each)


def _is(path: str, name: str) -> bool:
    """Whether a path that the kernel shows may be QEMU's ``name``, perhaps relative to a folder that QEMU left."""
    return f"/{path.removesuffix(' (deleted)')}".endswith(f"/{name}")
