"""The guest's own process: it boots, then obeys commands from a socket.

::

    GO n      run until n steps are done in all, then idle       answered immediately
    HALT n    run until n steps are done in all, unless they     answered when nothing changes any more
              are done already, then stand still
    WATCH     hand over a userfaultfd of this process              answered immediately, with the descriptor
              and say where RAM is mapped                          or, if there is none, with a failure

While booting it reports its progress (FILLED). An answer repeats the command's sequence number and gives the number of
steps done; the first one, with number 0, says that the guest has booted and stands still. Between two steps the socket
is polled without waiting; a guest with nothing to do sleeps in ``poll``. The process ends when the other end is closed.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import numpy as np

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.host.processes import forked
from parallel_fixedram.machines.builtin.dirty_log import DirtyLog
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.builtin.workload import BATCH_PAGES, PAGE_WORDS, Indices, Program

COMMAND = struct.Struct("<cQQ")
"""GO, HALT or WATCH, sequence number, number of steps."""
ANSWER = struct.Struct("<cQQ")
"""DONE, sequence number of the command, steps done; WATCHED, sequence number, address of RAM."""
FAILURE = struct.Struct("<cH")
"""FAILED, or HOST_FAILED if the host is to blame, and an errno or 0; a line of text follows."""
GO, HALT, DONE, FAILED, HOST_FAILED, FILLED = b"G", b"H", b"D", b"F", b"O", b"P"
WATCH, WATCHED = b"U", b"W"
MESSAGE_BYTES = 512
"""No message is longer."""
FILLED_PAGES = 8192
"""While booting it sends a message each time it has written this many pages: FILLED, 0, pages so far."""


def live(spec: GuestSpec, ram_fd: int, log: DirtyLog, sock: socket.socket, parent: int) -> NoReturn:
    """Be the guest; called in a newly forked process, and never returns.

    Args:
        spec: the guest.
        ram_fd: descriptor of its RAM.
        log: its dirty log.
        sock: this end of a SOCK_SEQPACKET pair.
        parent: process id of the parent.
    """
    status = 1
    try:
        _detach(parent, {sock.fileno(), ram_fd})
        ram = np.frombuffer(mmap.mmap(ram_fd, spec.size), np.uint64).reshape(-1, PAGE_WORDS)
        program = Program(spec)
        channel = FileChannel(ram_fd, "guest RAM")
        written = 0
        for pages, contents in program.boot():
            _fill(channel, pages, contents)
            log.mark(pages)
            before, written = written, written + len(pages)
            if before // FILLED_PAGES < written // FILLED_PAGES:
                sock.send(ANSWER.pack(FILLED, 0, written))
        _serve(spec, program, ram, log, sock)
        status = 0
    except BaseException as error:
        with suppress(OSError):
            sock.send(_failure(error)[:MESSAGE_BYTES])
    finally:
        os._exit(status)  # without the parent's exit handlers, buffers and destructors


def _detach(parent: int, keep: set[int]) -> None:
    """Leave behind what a forked process inherits but has no use for."""
    forked.settle_in(parent)
    gc.freeze()  # objects of the parent are not ours to destroy
    # Locks, pipes and memory files of the parent would otherwise live as long as the guest does.
    forked.close_others({0, 1, 2, *keep})


def _failure(error: BaseException) -> bytes:
    """The message that says why the guest ends."""
    by_host = isinstance(error, (HostError, OSError, MemoryError))
    told = error if isinstance(error, FixedRamError) else HostError.from_any("", error)
    number = told.errno if isinstance(told, HostError) else 0
    return FAILURE.pack(HOST_FAILED if by_host else FAILED, number) + told.message.removeprefix(": ").encode(
        "utf-8", "replace"
    )


def _fill(ram: FileChannel, pages: Indices, contents: Pages) -> None:
    """Write pages that were never touched. Through the mapping each would fault, and take twice as long."""
    ends = [*(np.flatnonzero(np.diff(pages) != 1) + 1).tolist(), len(pages)]
    start = 0
    for end in ends:
        ram.write(int(pages[start]) * TARGET_PAGE_SIZE, contents[start:end].data.cast("B"))
        start = end


def _serve(spec: GuestSpec, program: Program, ram: Pages, log: DirtyLog, sock: socket.socket) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    pace = _Pace(spec.rate)
    done = until = sequence = 0
    owed = True  # an answer
    while True:
        if owed and done >= until:
            sock.send(ANSWER.pack(DONE, sequence, done))
            owed = False
        if poller.poll(pace.wait_ms(done) if done < until else None):
            message = sock.recv(MESSAGE_BYTES)
            if not message:
                return
            command, sequence, number = COMMAND.unpack(message)
            if command == WATCH:
                _hand_over_userfaultfd(sock, sequence, ram)
                continue
            if command == GO:
                sock.send(ANSWER.pack(DONE, sequence, done))
                until = number
            else:
                until = max(number, done)
            owed = command == HALT
            pace.restart(done)
        elif done < until:
            log.mark(program.step(ram, done + 1))
            done += 1


def _hand_over_userfaultfd(sock: socket.socket, sequence: int, ram: Pages) -> None:
    try:
        userfaultfd = Userfaultfd.open_own()
    except HostError as error:
        sock.send(_failure(error)[:MESSAGE_BYTES])
        return
    socket.send_fds(sock, [ANSWER.pack(WATCHED, sequence, ram.ctypes.data)], [userfaultfd.fileno()])
    userfaultfd.close()  # the only copy is now with whoever asked


class _Pace:
    """Spreads steps over time so that ``rate`` bytes are written per second; 0 for no limit."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step_seconds = BATCH_PAGES * TARGET_PAGE_SIZE / rate if rate else 0.0
        self.restart(0)

    def restart(self, done: int) -> None:
        self._origin = self._clock() - done * self._step_seconds

    def wait_ms(self, done: int) -> float:
        """Milliseconds until the step after ``done`` steps is due."""
        if not self._step_seconds:
            return 0
        return max(0.0, (self._origin + (done + 1) * self._step_seconds - self._clock()) * 1000)
