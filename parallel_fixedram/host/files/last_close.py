"""The last close of a file that has no name any more, by a process that nobody waits for.

Whoever closes such a file last frees its blocks, and where the file system discards them online (ext4, ``-o discard``)
that takes seconds for a large one, tens of seconds for a scattered one. A thread would not do: a process is gone only
when all its threads are.
"""

from __future__ import annotations

import os
from typing import NoReturn

from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import forked

WORTH_A_PROCESS = 4 << 20
"""Bytes on the file system from which on starting a process is quicker than to free them (measured)."""


def close_unwaited(fd: int) -> None:
    """Close a descriptor through which nothing has to be written any more; returns before the file's blocks are freed.

    A file that still has a name, or is small, is closed here and now, and so is any where no process can be started.
    """
    told = -1
    try:
        status = os.fstat(fd)
        if not status.st_nlink and status.st_blocks * 512 >= WORTH_A_PROCESS:
            told = _hand_over(fd)
    except OSError:
        pass
    linux.close(fd)
    if told >= 0:
        os.close(told)  # now ours is not the last one


def _hand_over(fd: int) -> int:
    """Let a process that is no child of ours have the descriptor until the one that is returned is closed.

    Raises:
        OSError: none could be started.
    """
    until, told = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0:
            _leave_to_another(fd, until)
        forked.reap(between)
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(until)
    return told


def _leave_to_another(fd: int, until: int) -> NoReturn:
    try:
        if os.fork() == 0:
            os.setsid()
            forked.keep_only({fd, until})  # whoever reads our output until its end does not wait for us
            os.read(until, 1)
            linux.close(fd)
    finally:
        os._exit(0)
