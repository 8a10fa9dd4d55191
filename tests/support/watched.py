"""Watched: a process of the test's that owns memory and gives its userfaultfd away, to be told what to do with it.

::

    test --- begin(function, ...) --->  process: function(memory, ...), which may have to wait
         <-- its userfaultfd ---------
         <-- end(): what it returned -
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import pickle
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn, Self

import numpy as np
import pytest
from support.qemu_tools import missing

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.userfaultfd import Message, Userfaultfd, missing_features

PAGE = mmap.PAGESIZE
SECONDS = 20.0
"""Longer than anything takes; what takes longer waits for ever."""
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2

_kept: list[mmap.mmap] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
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


class Watched:
    """A context manager around such a process; it is killed at the end.

    Args:
        make: makes the memory, in the process.

    Attributes:
        pid: the process.
        start: address of the memory in it.
        length: bytes.
        uffd: its userfaultfd, features enabled; nothing is registered yet.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __enter__(self) -> Self:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _serve(theirs, self._make)
        theirs.close()
        self._ours.settimeout(SECONDS)
        data, (control, *_), *_ = self._ours.recvmsg(4096, socket.CMSG_SPACE(4))
        self.start, self.length = pickle.loads(data)
        self.uffd = Userfaultfd(int.from_bytes(control[2][:4], "little"))
        self.uffd.enable()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._ours.close()
        self.uffd.close()

    def page(self, number: int) -> int:
        """The address of a page."""
        return self.start + number * PAGE

    def register(self) -> None:
        self.uffd.register(self.start, self.length)

    def protect(self) -> None:
        self.uffd.protect(self.start, self.length)

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have it call a function with its memory and these arguments."""
        self._ours.send(pickle.dumps((function, arguments)))

    def end(self) -> Any:
        """What that returned; it must not wait for us."""
        result = pickle.loads(self._ours.recv(1 << 16))
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Both: it must not wait for us."""
        self.begin(function, *arguments)
        return self.end()

    def wait(self) -> None:
        """Until there is a message to read."""
        assert self._ready(self.uffd.fileno()), "nothing waits"

    def message(self) -> Message:
        """The one message that comes."""
        self.wait()
        [found] = self.uffd.read()
        return found

    def end_reading(self) -> tuple[Any, list[Message]]:
        """What the function returned, and all messages until then."""
        found: list[Message] = []
        while self._ours.fileno() not in self._ready(self._ours.fileno(), self.uffd.fileno()):
            found += self.uffd.read()
        return self.end(), found

    def _ready(self, *descriptors: int) -> list[int]:
        poll = select.poll()
        for fd in descriptors:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(SECONDS * 1000)]


def _serve(ours: socket.socket, make: Callable[[], Any]) -> NoReturn:
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        linux.die_with_parent(signal.SIGKILL, os.getppid())
        memory = make()
        uffd = Userfaultfd.open_own()
        where = np.frombuffer(memory, np.uint8).ctypes.data, len(memory)
        handed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd.fileno()]))
        ours.sendmsg([pickle.dumps(where)], [handed])
        uffd.close()
        while order := ours.recv(1 << 16):
            function, arguments = pickle.loads(order)
            try:
                result = function(memory, *arguments)
            except Exception as error:
                result = error
            ours.send(pickle.dumps(result))
    finally:
        os._exit(0)


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
