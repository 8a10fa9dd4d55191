"""Guardian: a small process that does one thing if we die before we could do it ourselves, by SIGKILL too.

::

    us ------ armed: a byte in shared memory ------> guardian, asleep on our pidfd
     |                                                 |
     +-- dies, armed or not -------------------------->+-- armed: acts, ends;   not armed: ends

It ignores the signals that a terminal or a service manager sends to us, and holds no descriptor but those it needs.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
from collections.abc import Callable, Collection
from types import TracebackType
from typing import NoReturn, Self

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import processes, signals
from parallel_fixedram.host.channel import anonymous_memory

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


class Guardian:
    """Context manager around the process; it is told to act, or not to, with ``arm`` and ``disarm``.

    Args:
        act: what to do; runs in the guardian's process, so it uses no thread, no lock and no event loop of ours.
        descriptors: what ``act`` needs open.

    Raises:
        HostError: no process could be started.
    """

    def __init__(self, act: Callable[[], None], descriptors: Collection[int] = ()) -> None:
        self._act = act
        self._descriptors = set(descriptors)
        self._pid = 0

    def __enter__(self) -> Self:
        self._armed = anonymous_memory(mmap.PAGESIZE, shared=True)
        try:
            us = os.pidfd_open(os.getpid())  # before the fork, so that it cannot come to mean another process
            try:
                with signals.held():
                    pid = os.fork()
                    if pid == 0:
                        self._watch(us)
                    self._pid = pid
            finally:
                os.close(us)
        except OSError as error:
            raise HostError.from_os("cannot start the process that looks after the guest", error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def arm(self) -> None:
        """From now on it acts when we die."""
        self._armed[0] = 1

    def disarm(self) -> None:
        """From now on it does not."""
        self._armed[0] = 0

    def close(self) -> None:
        """End the process; more than once does no harm."""
        if self._pid:
            processes.kill(self._pid)
            processes.reap(self._pid)
            self._pid = 0

    def _watch(self, us: int) -> NoReturn:
        try:
            for signum in _IGNORED:
                signal.signal(signum, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            os.setsid()
            keep = {us, *self._descriptors}
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                if fd not in keep:
                    os.dup2(null, fd)
            for name in os.listdir("/proc/self/fd"):
                if (fd := int(name)) > 2 and fd not in keep:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            poll = select.poll()
            poll.register(us, select.POLLIN)
            poll.poll()
            if self._armed[0]:
                self._act()
        finally:
            os._exit(0)
