"""The disks of a running QEMU, synced from outside just before it is stopped.

QEMU's ``stop`` waits for every request of its block devices and then flushes each of them (QEMU system/cpus.c,
do_vm_stop: bdrv_drain_all, bdrv_flush_all), and the guest stands still meanwhile: with a few GiB of its writes in the
host's page cache that takes seconds. What was synced before need not be flushed then.

Which files these are does not follow from the names that QEMU has for them: they may be relative to a folder it has
left, pseudo (``json:``, ``/dev/fdset/N``), removed, or of another mount namespace. So QEMU is asked whether there are
any, and which it would not flush; the files themselves are those that it has open to read and write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.host.files.open_files import sync_open_files, written_files
from parallel_fixedram.machines.qemu.monitor import Monitor

MOST_SECONDS = 30.0
"""How long disks may take: what QEMU has to flush after that, it will."""

_LOCAL = ("file", "host_device")
"""Block drivers that leave what they write in this host's page cache (QEMU block/file-posix.c)."""

_ELSEWHERE = ("gluster", "iscsi", "nbd", "nfs", "rbd", "ssh")
"""Block drivers that have a flush carried out by somebody else."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A block node that is written, and flushed by ``stop``."""

    name: str
    driver: str
    file: str
    flushed: bool


def sync_disks(monitor: Monitor, pid: int) -> list[str]:
    """Bring to stable storage what the guest has written to its disks so far.

    Args:
        monitor: of the QEMU.
        pid: its process.

    Returns:
        What could not be synced, and why: a sentence for each.

    Raises:
        MachineError: QEMU does not say what disks it has, or has ended.
    """
    nodes = [*_written_nodes(monitor)]
    notes = [
        f"disk {each.name!r} is behind {each.driver}: it cannot be synced from here before the guest is stopped"
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
    """Whether a path, as the kernel shows it, may be what QEMU calls ``name``, perhaps relative to a folder it left."""
    return f"/{path.removesuffix(' (deleted)')}".endswith(f"/{name}")
