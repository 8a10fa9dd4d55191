"""A file system on a block device that the tests serve: its writes are logged, fail and hang as they want it.

::

    file system -- loop device -- fuse/disk -- nbdfuse -- nbdkit: support/served_disk_plugin.py -- image
                                                            |-> log: writes and flushes, in order
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.cut_disk import CutDisk, keep_mounts_to_ourselves, loop_device, make_file_system
from support.qemu_tools import missing, require_tool
from support.served_disk_plugin import FLUSHED, HEAD

_PLUGIN = Path(__file__).with_name("served_disk_plugin.py")
_SECONDS = 30.0


class Write(NamedTuple):
    """Bytes that have got to the device."""

    offset: int
    data: bytes


Log = list[Write | None]
"""Writes in the order in which the device got them; None for a flush: what was written before it stays."""


class ServedDisk(CutDisk):
    """A mounted file system whose device is the tests'.

    Args:
        device: the loop device.
        kind: of file system.
        top: a folder with all that there is to it.
        server: the process of nbdkit.
    """

    def __init__(self, device: str, kind: str, top: Path, server: int) -> None:
        self._top, self._server = top, server
        super().__init__(device, kind, top / "mounted")

    @property
    def image(self) -> Path:
        """What the device holds, all that was ever written."""
        return self._top / "image"

    def logged(self) -> int:
        """Bytes of the log by now."""
        return (self._top / "log").stat().st_size

    def log(self, start: int, end: int) -> Log:
        """What is between these two places of the log."""
        data, found = (self._top / "log").read_bytes(), Log()
        while start < end:
            offset, length = HEAD.unpack_from(data, start)
            start += HEAD.size + length
            found.append(None if offset == FLUSHED else Write(offset, data[start - length : start]))
        return found

    def fail(self, request: str, times: int = 0, number: int = errno.EIO) -> None:
        """From now on ``pread``, ``pwrite`` or ``flush`` fails, so many times or for good."""
        self._order(request).write_text(f"{number} {times} ")

    def heal(self) -> None:
        """Nothing fails any more."""
        for request in ("pread", "pwrite", "flush"):
            self._order(request).unlink(missing_ok=True)

    def has_failed(self, request: str) -> bool:
        """Whether it has failed as many times as it was to."""
        return not self._order(request).exists()

    def hang(self) -> None:
        """From now on nothing is answered."""
        os.kill(self._server, signal.SIGSTOP)

    def go_on(self) -> None:
        """All is answered again, what has waited meanwhile as well."""
        os.kill(self._server, signal.SIGCONT)

    def _order(self, request: str) -> Path:
        return self._top / "orders" / request


@contextlib.contextmanager
def served_disk(kind: str, room: int | None = None) -> Iterator[ServedDisk]:
    """An empty one; the test is skipped where none can be mounted, in CI only for want of rights.

    Args:
        kind: of file system.
        room: bytes that the device can really hold, whatever it says; None for all.
    """
    keep_mounts_to_ourselves()
    with tempfile.TemporaryDirectory(prefix="served-", dir="/dev/shm") as name, contextlib.ExitStack() as stack:
        top = Path(name)
        for folder in ("mounted", "fuse", "orders", "thin"):
            (top / folder).mkdir()
        if room is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "thin", top / "thin"], check=True)
            stack.callback(subprocess.run, ["umount", top / "thin"], check=True)
            (top / "image").symlink_to(top / "thin" / "image")
        make_file_system(kind, (top / "image").resolve())
        server = stack.enter_context(_served(top))
        disk = ServedDisk(stack.enter_context(loop_device(top / "fuse" / "disk")), kind, top, server)
        stack.callback(disk.unmount)
        stack.callback(disk.heal)
        stack.callback(disk.go_on)
        yield disk


@contextlib.contextmanager
def _served(top: Path) -> Iterator[int]:
    """``fuse/disk`` is what nbdkit serves; gives its process."""
    if not os.path.exists("/dev/fuse"):
        missing("this kernel has no FUSE")
    command = [require_tool("nbdfuse"), "-P", top / "pid", top / "fuse" / "disk", "--command"]
    command += [require_tool("nbdkit"), "-s", "python", _PLUGIN]
    command += [f"{key}={top / key}" for key in ("image", "log", "orders")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _SECONDS
        while not (top / "pid").exists():  # written when it can be used
            assert server.poll() is None, "nbdfuse has ended"
            assert time.monotonic() < deadline, "nbdfuse is not ready"
        (nbdkit,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        yield int(nbdkit)
    finally:
        subprocess.run(["umount", top / "fuse"], check=True)  # and so both end
        server.wait(_SECONDS)
