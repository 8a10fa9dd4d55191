"""Watched: a process of the test's that owns memory and gives its userfaultfd away, to be told what to do with it.

::

    test --- begin(function, ...) --->  process: function(memory, ...), which may have to wait
         <-- its userfaultfd ---------
         <-- end(): what it returned -
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
from support.puppet import Puppet
from support.qemu_tools import missing

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.userfaultfd import Message, Userfaultfd, missing_features

PAGE = mmap.PAGESIZE
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_COLLAPSE = 25

_kept: list[mmap.mmap] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def require_userfaultfd() -> None:
    """Skip the running test, in CI fail it, where no full userfaultfd can be had, or none with all features."""
    try:
        Userfaultfd.open_own().close()
        lacking = missing_features()
    except HostError as error:
        missing(f"{error.message}: {error.hint}")
    if lacking:
        missing(f"this kernel lacks {lacking}")


class Watched(Puppet):
    """A context manager around such a process; it is killed at the end.

    Args:
        make: makes the memory, in the process.

    Attributes:
        start: address of the memory in it.
        length: bytes.
        uffd: its userfaultfd, features enabled; nothing is registered yet.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(lambda function, *arguments: function(self._memory, *arguments))
        self._make = make

    def __enter__(self) -> Self:
        require_userfaultfd()
        super().__enter__()
        data, [fd], *_ = socket.recv_fds(self._ours, 4096, 1)
        self.start, self.length = pickle.loads(data)
        self.uffd = Userfaultfd(fd)
        self.uffd.enable()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.uffd.close()

    def prepare(self, ours: socket.socket) -> None:
        self._memory = self._make()
        uffd = Userfaultfd.open_own()
        where = np.frombuffer(self._memory, np.uint8).ctypes.data, len(self._memory)
        socket.send_fds(ours, [pickle.dumps(where)], [uffd.fileno()])
        uffd.close()

    def page(self, number: int) -> int:
        """The address of a page."""
        return self.start + number * PAGE

    def register(self) -> None:
        self.uffd.register(self.start, self.length)

    def protect(self) -> None:
        self.uffd.protect(self.start, self.length)

    def wait(self) -> None:
        """Until there is a message to read."""
        assert self.ready(self.uffd.fileno()), "nothing waits"

    def message(self) -> Message:
        """The one message that comes."""
        self.wait()
        [found] = self.uffd.read()
        return found

    def end_reading(self) -> tuple[Any, list[Message]]:
        """What the function returned, and all messages until then."""
        found: list[Message] = []
        while not self.answer_or(self.uffd.fileno()):
            found += self.uffd.read()
        return self.end(), found


def write(memory: mmap.mmap, page: int, value: int = 1) -> None:
    """By the process itself."""
    memory[page * PAGE] = value


def kernel_write(memory: mmap.mmap, page: int) -> int:
    """By the kernel, in a system call: zeros. Returns how many bytes."""
    with open("/dev/zero", "rb", buffering=0) as zeros:
        return os.readv(zeros.fileno(), [memoryview(memory)[page * PAGE : (page + 1) * PAGE]])


def write_by_threads(memory: mmap.mmap, pages: int) -> None:
    """The first pages, each by a thread of its own, all at once."""
    start = np.frombuffer(memory, np.uint8).ctypes.data
    threads = [threading.Thread(target=ctypes.memset, args=(start + page * PAGE, 1, 1)) for page in range(pages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def read(memory: mmap.mmap, page: int) -> int:
    return memory[page * PAGE]


def advise(memory: mmap.mmap, advice: int, page: int, pages: int) -> None:
    memory.madvise(advice, page * PAGE, pages * PAGE)


def punch(memory: mmap.mmap, fd: int, page: int, pages: int) -> None:
    """A hole in the file below, through its descriptor."""
    linux.fallocate(fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, page * PAGE, pages * PAGE)


def unmap(memory: mmap.mmap, page: int, pages: int) -> None:
    start = np.frombuffer(memory, np.uint8).ctypes.data + page * PAGE
    assert _libc.munmap(start, pages * PAGE) == 0, os.strerror(ctypes.get_errno())


def move(memory: mmap.mmap, page: int, pages: int) -> int:
    """To somewhere else; returns the address."""
    target = mmap.mmap(-1, pages * PAGE)
    _kept.append(target)
    address = np.frombuffer(target, np.uint8).ctypes.data
    start = np.frombuffer(memory, np.uint8).ctypes.data + page * PAGE
    moved = _libc.mremap(start, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, address)
    assert moved == address, os.strerror(ctypes.get_errno())
    return address


def register_once_more(memory: mmap.mmap) -> None:
    """By another userfaultfd of the process."""
    uffd = Userfaultfd.open_own()
    uffd.enable()
    uffd.register(np.frombuffer(memory, np.uint8).ctypes.data, len(memory))


def write_at(_: mmap.mmap, address: int) -> None:
    ctypes.memset(address, 1, 1)


def require_huge_page(pid: int, start: int) -> None:
    """Skip the running test where the kernel gave no huge page to private memory."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        of_it = file.read().partition(f"{start:x}-")[2].partition("AnonHugePages:")[2].split()
    if not of_it or int(of_it[0]) == 0:
        pytest.skip("no transparent huge page was to be had")


def write_every_page(memory: memoryview) -> None:
    for page in range(len(memory) // PAGE):
        memory[page * PAGE] = 1


def collapse(memory: memoryview, page: int, pages: int) -> int:
    """Ask for a huge page here and now (MADV_COLLAPSE of Linux 6.1), whatever comes of it; returns the errno."""
    start = np.frombuffer(memory, np.uint8).ctypes.data + page * PAGE
    return ctypes.get_errno() if _libc.madvise(start, pages * PAGE, MADV_COLLAPSE) else 0


def fork(_: mmap.mmap) -> None:
    """And see the child end."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def change_access(memory: mmap.mmap) -> None:
    """To none, and back."""
    start = np.frombuffer(memory, np.uint8).ctypes.data
    for access in (0, mmap.PROT_READ | mmap.PROT_WRITE):
        assert _libc.mprotect(start, len(memory), access) == 0
