"""The last close of a file without a name, done by a process that nobody waits for.

The last close frees the file's blocks. If the file system discards them online (ext4, ``-o discard``), that takes
seconds for a large file and tens of seconds for a fragmented one. A thread would not help: a process is gone only when
all its threads are.
"""

from __future__ import annotations

import os
from typing import NoReturn

from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import forked

WORTH_A_PROCESS = 4 << 20
"""Bytes on disk above which starting a process is quicker than freeing them (measured)."""


def close_unwaited(fd: int) -> None:
    """Close a descriptor that needs no more writing; returns before the file's blocks are freed.

    If the file still has a name or is small, or if no process can be started, it is closed here and now.
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
        os.close(told)  # only now, so that the other process's close comes after ours and is the last


def _hand_over(fd: int) -> int:
    """Start a process, not a child of ours, that keeps the descriptor open until the returned one is closed.

    Raises:
        OSError: no process could be started.
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
            forked.keep_only({fd, until})  # closes our output, so that whoever reads it to its end does not wait for us
            os.read(until, 1)
            linux.close(fd)
    finally:
        os._exit(0)
