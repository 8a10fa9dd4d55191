"""Memory of a child process that sleeps; tests write to it through /proc/PID/mem, as the child would."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.pictures import PAGE, page

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS


def address_of(view: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def paint(view: mmap.mmap, picture: str) -> None:
    """Write what is drawn, touch nothing else."""
    for index, letter in enumerate(picture):
        if letter != "-":
            view[index * PAGE : (index + 1) * PAGE] = page(letter)


@dataclass
class Owner:
    """A process that owns memory and sleeps."""

    pid: int
    address: int
    mem: int
    """Its memory as a file."""

    def memory_pages(self) -> int:
        """Pages of private memory it has."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024 // PAGE

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@contextmanager
def owner(view: mmap.mmap, picture: str = "", act: Callable[[], object] = lambda: None) -> Iterator[Owner]:
    """A fork that has ``view``, paints it, acts, and sleeps until it is killed."""
    address = address_of(view)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            paint(view, picture)
            act()
            os.write(tell, b"r")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"r"
        mem = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        child = Owner(pid, address, mem)
        try:
            yield child
        finally:
            os.close(mem)
    finally:
        os.close(ready)
        with_child_gone(pid)


def with_child_gone(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def anonymous(pages: int, flags: int = PRIVATE) -> mmap.mmap:
    view = mmap.mmap(-1, pages * PAGE, flags=flags)
    if flags == PRIVATE:
        view.madvise(mmap.MADV_NOHUGEPAGE)
    return view


def close_all(view: mmap.mmap) -> None:
    """Close every descriptor but those that a test needs to hear of the child; the mapping stays."""
    assert len(view)
    for name in os.listdir("/proc/self/fd"):
        target = f"/proc/self/fd/{name}"
        if os.path.lexists(target) and os.readlink(target).startswith("/dev/shm/"):
            os.close(int(name))


def needs_map_files() -> None:
    try:
        os.stat(f"/proc/self/map_files/{os.listdir('/proc/self/map_files')[0]}")
    except PermissionError as error:
        pytest.skip(f"map_files may not be opened: {error}")
