"""A machine with swap, and a control group that holds processes to less memory than they have; undone in any case.

Not every host allows that to root: a test that needs it is skipped there, in CI too, and says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.qemu_tools import require_tool

MIB = 1 << 20
_ATTEMPTS = 50
_ROOT = Path("/sys/fs/cgroup")


class Group:
    """A control group for memory, of either version.

    Args:
        folder: its folder; made here.
        old: whether it is of version 1.
    """

    def __init__(self, folder: Path, *, old: bool) -> None:
        self._folder, self._old = folder, old

    def take(self, pid: int) -> None:
        """Put a process into it."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def entry(self) -> list[str]:
        """A command in front of another one that is to begin its life in it."""
        return ["sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh"]

    def limit(self, size: int) -> None:
        """Hold it to so many bytes, which pushes the rest into swap: version 1 tries only for a while each time."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(OSError):
                (self._folder / ("memory.limit_in_bytes" if self._old else "memory.max")).write_text(str(size))
                return
        pytest.fail("the kernel does not get so much memory into swap")

    def usage(self) -> int:
        """What its processes take of memory, swap not counted, bytes."""
        return int((self._folder / ("memory.usage_in_bytes" if self._old else "memory.current")).read_text())

    def killed(self) -> int:
        """How many of its processes were killed for want of memory."""
        text = (self._folder / ("memory.oom_control" if self._old else "memory.events")).read_text()
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        assert found
        return int(found[1])


@contextlib.contextmanager
def group(name: str) -> Iterator[Group]:
    """An empty control group."""
    folder, old = _parent()
    made = folder / f"{name}-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (made / ("memory.limit_in_bytes" if old else "memory.max")).exists():
            pytest.skip("control groups here do not limit memory")
        yield Group(made, old=old)
    finally:
        made.rmdir()


def _parent() -> tuple[Path, bool]:
    """Our own control group for memory, or its root, and whether it is of version 1."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    for names, path in groups.items():
        if "memory" in names.split(",") and (folder := _ROOT / "memory").is_dir():
            ours = folder / path.lstrip("/")
            return (ours if ours.is_dir() else folder), True
    return _ROOT, False


class Swap:
    """A file that is swap.

    Args:
        file: its path.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def used(self) -> int:
        """How much of it is taken, bytes."""
        rows = (line.split() for line in Path("/proc/swaps").read_text().splitlines())
        return next(int(row[3]) << 10 for row in rows if row[0] == str(self._file))


@contextlib.contextmanager
def swap(size: int) -> Iterator[Swap]:
    """So much more swap, in a file."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        file = Path(folder) / "swap"
        with open(file, "wb") as opened:
            file.chmod(0o600)
            os.posix_fallocate(opened.fileno(), 0, size)
        subprocess.run([require_tool("mkswap"), file], check=True, capture_output=True)
        done = subprocess.run([require_tool("swapon"), file], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no swap can be had here: {done.stderr.strip()}")
        try:
            yield Swap(file)
        finally:
            subprocess.run([require_tool("swapoff"), file], check=True, capture_output=True)
