"""A file system whose power can be cut: what was not on stable storage by then is gone."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.leftovers import own_mounts

_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2  # FS_IOC_SHUTDOWN: fs/ext4/ext4.h, fs/xfs/xfs_fs.h
_SIZES = {"ext4": 32 << 20, "xfs": 320 << 20}
"""Bytes; xfs is no smaller."""
_MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
_libc = ctypes.CDLL(None, use_errno=True)


class CutDisk:
    """A mounted file system on a loop device, in memory.

    Args:
        device: where it is.
        kind: which.
        folder: where it is mounted.
    """

    def __init__(self, device: str, kind: str, folder: Path) -> None:
        self._device, self._kind = device, kind
        self.folder = folder
        self.mount()

    def settle(self) -> None:
        """Bring everything to stable storage."""
        with self._opened() as fd:
            if _libc.syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs")

    def cut(self) -> None:
        """The power fails: from now on nothing gets to the device."""
        with self._opened() as fd:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))

    def come_back(self) -> None:
        """Power is there again, and the journal is replayed."""
        self.unmount()
        self.mount()

    def mount(self) -> None:
        """Replays the journal, if there is anything in it."""
        if _libc.mount(self._device.encode(), os.fsencode(self.folder), self._kind.encode(), 0, None):
            raise OSError(error := ctypes.get_errno(), f"mount: {os.strerror(error)}")

    def unmount(self) -> None:
        if _libc.umount2(os.fsencode(self.folder), 0):
            raise OSError(error := ctypes.get_errno(), f"umount: {os.strerror(error)}")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


@contextlib.contextmanager
def cut_disk(kind: str) -> Iterator[CutDisk]:
    """An empty one; the test is skipped where none can be mounted."""
    keep_mounts_to_ourselves()
    with tempfile.TemporaryDirectory(prefix="cut-", dir="/dev/shm") as name, contextlib.ExitStack() as stack:
        image, folder = Path(name, "image"), Path(name, "mounted")
        folder.mkdir()
        make_file_system(kind, image)
        disk = CutDisk(stack.enter_context(loop_device(image)), kind, folder)
        stack.callback(disk.unmount)
        yield disk


def make_file_system(kind: str, image: Path) -> None:
    """An empty one, in a new file."""
    image.touch()
    os.truncate(image, _SIZES[kind])
    subprocess.run([*_MKFS[kind], image], check=True, capture_output=True)


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A block device that is that file; the test is skipped where none is to be had."""
    found = subprocess.run(["losetup", "-f", "--show", image], check=False, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    device = found.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def keep_mounts_to_ourselves() -> None:
    """For good; the test is skipped where that is not permitted."""
    if not own_mounts():
        pytest.skip(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
