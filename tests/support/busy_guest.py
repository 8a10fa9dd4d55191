"""A process that maps files of RAM and keeps writing into them what is there already.

So whenever they are saved their contents are the same, and yet a snapshot has writes to hold back. Its userfaultfd is
given to whoever asks: only the saver, and nobody who forked it, ever has it.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import socket
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn, Self

import numpy as np

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import AddressSpace
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd

PAGE, EVERY = mmap.PAGESIZE, 7
SECONDS = 20.0


class BusyGuest:
    """A context manager around the process; it is killed at the end.

    Args:
        ram: path of each file, and which of its pages may be written.
    """

    def __init__(self, ram: Iterable[tuple[str, Sequence[int]]]) -> None:
        self._ram = list(ram)
        self._rounds = np.frombuffer(mmap.mmap(-1, PAGE), np.uint64)

    def __enter__(self) -> Self:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._live(theirs, parent)
        theirs.close()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        self._ours.close()

    def address_space(self) -> AddressSpace:
        return AddressSpace(watch=self._watch, has_answered=lambda: None)

    def _watch(self) -> tuple[int, Sequence[int]]:
        self._ours.send(b"?")
        data, descriptors, *_ = socket.recv_fds(self._ours, 4096, 1)
        if not descriptors:
            raise HostError("there is no descriptor left for a userfaultfd", errno=errno.EMFILE)
        return descriptors[0], pickle.loads(data)

    def goes_on(self) -> None:
        """Return when it has written every page once more, which must not take for ever."""
        end, deadline = self._rounds[0] + 2, time.monotonic() + SECONDS
        while self._rounds[0] < end:
            assert time.monotonic() < deadline, "it hangs"
            os.sched_yield()

    def is_watched(self) -> bool:
        """Whether any of its memory is registered with a userfaultfd (``uw`` of /proc/PID/smaps)."""
        with open(f"/proc/{self._pid}/smaps", encoding="ascii", errors="replace") as file:
            return any(" uw" in line for line in file if line.startswith("VmFlags:"))

    def _live(self, saver: socket.socket, parent: int) -> NoReturn:
        try:
            linux.die_with_parent(9, parent)
            self._ours.close()
            saver.setblocking(False)
            memories, written = [], []
            for path, pages in self._ram:
                with open(path, "r+b") as file:
                    memories.append(np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8))
                written.append(np.array(pages)[::EVERY] * PAGE)
            while True:
                for memory, places in zip(memories, written, strict=True):
                    memory[places] = memory[places]
                self._rounds[0] += 1
                self._answer(saver, [memory.ctypes.data for memory in memories])
                os.sched_yield()
        finally:
            os._exit(1)

    @staticmethod
    def _answer(saver: socket.socket, starts: Sequence[int]) -> None:
        try:
            asked = saver.recv(1)
        except BlockingIOError:
            return
        if asked:
            userfaultfd = Userfaultfd.open_own()
            socket.send_fds(saver, [pickle.dumps(starts)], [userfaultfd.fileno()])
            userfaultfd.close()
