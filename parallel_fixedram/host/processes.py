"""Processes that we fork: how they settle in, and how they end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Collection

from parallel_fixedram.host import linux


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


def kill(pid: int) -> None:
    """Send SIGKILL; a process that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap(pid: int) -> str:
    """Wait for the end of a child; returns how it ended, to stand behind its name in a sentence."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # somebody waits for all children, or SIGCHLD is ignored
        return "is gone"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Whether a process is no more, or ends within ``seconds``."""
    poll = select.poll()  # not select(): a descriptor may be beyond 1024
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def keep_open(descriptors: Collection[int]) -> None:
    """Close every other descriptor of this process; its standard ones lead nowhere then."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in descriptors:
            os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2 and fd not in descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
