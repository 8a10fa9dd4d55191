"""Folders whose files have a place on a disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.qemu_tools import missing

from parallel_fixedram.host import linux


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[Path]:
    """The folder, or, where that lies in memory, another one that does not."""
    if not _in_memory(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        if _in_memory(Path(name)):
            missing("neither the folder for temporary files nor /var/tmp lies on a disk")
        yield Path(name)


def _in_memory(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return linux.is_tmpfs(fd)
    finally:
        os.close(fd)
