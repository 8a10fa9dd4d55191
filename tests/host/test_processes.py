"""What is known of processes without any right to them."""

import ctypes
import errno
import os
import platform
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host.memory.process_maps import refusal
from parallel_fixedram.host.processes.forked import has_ended, is_gone, settle_in

SYS_EXIT = 93 if platform.machine() == "aarch64" else 60
"""Ends a thread."""
SECONDS = 10.0
"""How long a process may take to end that ends at once."""
MAY_NOT = PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def child(act: Callable[[], object] = signal.pause) -> Iterator[int]:
    """A process that acts; it is reaped only at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_that_runs_is_not_gone() -> None:
    assert not is_gone(os.getpid())
    assert not is_gone(1)
    with child() as pid:
        assert not is_gone(pid)


def test_a_process_that_ended_is_gone_reaped_or_not() -> None:
    with child(lambda: None) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(pid)
    assert is_gone(pid)


def test_a_process_whose_memory_is_being_given_up_is_gone_though_it_has_not_ended() -> None:
    """What a large one is for a while, one is for good whose first thread has ended and another one goes on."""
    ear, mouth = os.pipe()

    def lose_first_thread() -> None:
        status = Path(f"/proc/self/task/{os.getpid()}/stat")

        def watch() -> None:
            while status.read_text().rpartition(")")[2].split()[0] != "Z":
                os.sched_yield()
            os.write(mouth, b"!")
            signal.pause()

        threading.Thread(target=watch).start()
        ctypes.CDLL(None).syscall(SYS_EXIT, 0)

    with child(lose_first_thread) as pid:
        assert os.read(ear, 1) == b"!"
        assert is_gone(pid)
    os.close(ear)
    os.close(mouth)


@pytest.mark.parametrize("name", ["a) Z 0", "(R) S"])
def test_a_name_that_looks_like_a_state_is_none(name: str) -> None:
    ear, mouth = os.pipe()

    def take_name() -> None:
        with open("/proc/self/comm", "w") as file:
            file.write(name)
        os.write(mouth, b"!")
        signal.pause()

    with child(take_name) as pid:
        assert os.read(ear, 1) == b"!"
        assert not is_gone(pid)
    os.close(ear)
    os.close(mouth)


def test_a_refusal_is_about_rights_only_while_there_is_a_process() -> None:
    with child() as pid:
        alive = refusal(pid, MAY_NOT, "cannot look")
        assert isinstance(alive, HostError)
        assert alive.message == "cannot look: permission denied"
        assert alive.hint
    gone = refusal(pid, MAY_NOT, "cannot look")
    assert isinstance(gone, MachineError)
    assert gone.message == f"process {pid} has ended"


def test_a_forked_process_that_has_settled_in_ends_with_its_parent() -> None:
    ear, mouth = os.pipe()

    def have_a_child() -> None:
        us = os.getpid()
        if (pid := os.fork()) == 0:
            settle_in(us)
            os.write(mouth, struct.pack("i", os.getpid()))
            signal.pause()
        os.waitpid(pid, 0)

    with child(have_a_child):
        pid = struct.unpack("i", os.read(ear, 4))[0]
        pidfd = os.pidfd_open(pid)
    try:
        assert has_ended(pidfd, SECONDS)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for fd in (ear, mouth, pidfd):
            os.close(fd)
