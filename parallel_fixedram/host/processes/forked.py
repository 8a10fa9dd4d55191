"""Processes that we fork: how they settle in, and how they end."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Collection

from parallel_fixedram.host import linux

_left: list[int] = []
"""Children that did not end in the time that we waited for them."""

_ENDED = b"ZXx"
_PF_EXITING = 0x4
"""A flag of a process (Linux: include/linux/sched.h)."""


def settle_in(parent: int) -> None:
    """Make a newly forked process ignore signals meant for its parent, and die with it.

    Ctrl-C and a hangup of the terminal are for the parent to handle. The kernel kills this process when the parent's
    thread ends.

    Args:
        parent: process id of the parent.
    """
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    linux.die_with_parent(signal.SIGKILL, parent)


def stand_alone(descriptors: Collection[int]) -> None:
    """Make a newly forked process independent of its parent's terminal: no signals from there, a session of its own.

    Args:
        descriptors: those that it keeps.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    os.setsid()
    keep_only(descriptors)


def keep_only(descriptors: Collection[int]) -> None:
    """Close all descriptors that a newly forked process inherited but these; 0, 1 and 2 become /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in descriptors:
            os.dup2(null, fd)
    close_others({0, 1, 2, *descriptors})


def close_others(descriptors: Collection[int]) -> None:
    """Close all descriptors of this process but these."""
    try:
        found = {int(name) for name in os.listdir("/proc/self/fd")}
    except FileNotFoundError:  # no /proc: try all possible numbers
        found = set(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    for fd in found - set(descriptors):
        with contextlib.suppress(OSError):
            os.close(fd)


def kill(pid: int) -> None:
    """Send SIGKILL; it is no error if the process is gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap(pid: int) -> str:
    """Wait for the end of a child; returns how it ended, as the predicate of a sentence."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # somebody waits for all children, or SIGCHLD is ignored
        return "is gone"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def leave(pid: int, seconds: float) -> None:
    """Wait up to ``seconds`` for the end of a child; one that has not ended by then is reaped by a later call."""
    _left.append(pid)
    with contextlib.suppress(OSError):  # somebody waits for all children, or SIGCHLD is ignored
        pidfd = os.pidfd_open(pid)
        with linux.closing(pidfd):
            has_ended(pidfd, seconds)
    reap_left()


def reap_left() -> None:
    """Reap children that were left and have ended since."""
    for pid in _left.copy():
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _left.remove(pid)


def has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Whether a process has ended, or ends within ``seconds``."""
    poll = select.poll()  # not select(): a descriptor may be beyond 1024
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or it has ended (reaped or not), or is about to; this takes no rights.

    A process gives up its memory before it has ended, which takes a while if it is large. From then on reading the
    memory fails with all kinds of errors, such as EACCES, because its files in /proc belong to root then (Linux:
    task_dump_owner in fs/proc/base.c).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *numbers = file.read().rpartition(b")")[2].split()  # the name may contain anything
    except OSError:  # it is gone, or /proc hides it
        return not lives(pid)
    return state in _ENDED or bool(int(numbers[5]) & _PF_EXITING)


def lives(pid: int) -> bool:
    """Whether a process has that number, even one that has ended but is not reaped yet."""
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False
