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
"""Children that took longer than they were waited for."""

_ENDED = b"ZXx"
_PF_EXITING = 0x4
"""Of the flags of a process (Linux: include/linux/sched.h)."""


def settle_in(parent: int) -> None:
    """Make a process just forked independent of its parent's signals, but not of its life.

    Ctrl-C and a terminal that hangs up are for the parent to answer; the kernel ends this process when its thread ends.

    Args:
        parent: process id of the parent.
    """
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    linux.die_with_parent(signal.SIGKILL, parent)


def keep_only(descriptors: Collection[int]) -> None:
    """Close everything that a process just forked has inherited but these; the standard ones lead nowhere then."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in descriptors:
            os.dup2(null, fd)
    close_others({0, 1, 2, *descriptors})


def close_others(descriptors: Collection[int]) -> None:
    """Close everything that this process has open but these."""
    try:
        found = {int(name) for name in os.listdir("/proc/self/fd")}
    except FileNotFoundError:  # no /proc is mounted: all numbers that there may be
        found = set(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    for fd in found - set(descriptors):
        with contextlib.suppress(OSError):
            os.close(fd)


def kill(pid: int) -> None:
    """Send SIGKILL; a process that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap(pid: int) -> str:
    """Wait for the end of a child; returns how it ended, to follow its name in a sentence."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # somebody waits for all children, or SIGCHLD is ignored
        return "is gone"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def leave(pid: int, seconds: float) -> None:
    """Wait for the end of a child, but no longer than that; it is reaped then, or when the next one is left."""
    _left.append(pid)
    with contextlib.suppress(OSError):  # somebody waits for all children, or SIGCHLD is ignored
        pidfd = os.pidfd_open(pid)
        try:
            has_ended(pidfd, seconds)
        finally:
            os.close(pidfd)
    reap_left()


def reap_left() -> None:
    """Reap those that were left and have ended since."""
    for pid in _left.copy():
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _left.remove(pid)


def has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Whether a process is no more, or ends within ``seconds``."""
    poll = select.poll()  # not select(): a descriptor may be beyond 1024
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or it has ended, reaped or not, or is about to; this takes no rights.

    A process gives up its memory before it has ended, and that of a large one takes a while.
    Asking for it fails from then on with whatever error: what it had in /proc belongs to root then, so that others are
    told that they may not (Linux: task_dump_owner in fs/proc/base.c).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *numbers = file.read().rpartition(b")")[2].split()  # the name may have any character
    except OSError:  # it is no more, or /proc hides it
        return not lives(pid)
    return state in _ENDED or bool(int(numbers[5]) & _PF_EXITING)


def lives(pid: int) -> bool:
    """Whether a process has that number, be it one that has ended and was not reaped."""
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False
