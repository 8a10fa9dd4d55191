"""Guardian: a small process that does one thing if we die before we have done it ourselves, even by SIGKILL.

::

    us ------ armed: a byte in shared memory ------> guardian, asleep on our pidfd
     |                                                 |
     +-- dies, or lets go of it ---------------------->+-- armed: acts, ends;   not armed: ends

It ignores the signals that a terminal or a service manager sends us, and keeps only the descriptors that it needs.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Callable, Collection
from types import TracebackType
from typing import NoReturn, Self

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.host.processes import forked, signals

_LET_GO_SECONDS = 1.0
_READY_SECONDS = 30.0
_PREPARED = b"\0"


class Guardian:
    """Context manager around the process; ``arm`` and ``disarm`` decide whether it acts.

    Args:
        act: what to do; runs in the guardian's process, so it must not use a thread, lock or event loop of ours.
        descriptors: those that ``act`` needs open.
        prepare: run once in the guardian's process, before anything else; if it raises a FixedRamError, ``await_ready``
            reports that.

    Raises:
        HostError: no process could be started.
    """

    def __init__(
        self,
        act: Callable[[], None],
        descriptors: Collection[int] = (),
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._act = act
        self._prepare = prepare
        self._descriptors = set(descriptors)
        self._ready = -1
        self._pid = 0
        self._go = -1

    def __enter__(self) -> Self:
        self._armed = anonymous_memory(mmap.PAGESIZE, shared=True)
        forked.reap_left()
        try:
            us = os.pidfd_open(os.getpid())  # before the fork, so that it cannot come to mean another process
            with linux.closing(us), signals.held():
                self._go = os.eventfd(0, os.EFD_CLOEXEC)
                self._ready, told = os.pipe2(os.O_CLOEXEC)
                with linux.closing(told):
                    pid = os.fork()
                    if pid == 0:
                        self._watch(us, told)
                    self._pid = pid
        except OSError as error:
            self._forget()
            raise HostError.from_os("cannot start the process that looks after the guest", error) from error
        except BaseException:  # a signal that was held back
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def await_ready(self) -> None:
        """Wait until the guardian is prepared, if there is anything to prepare; may be called more than once.

        Raises:
            HostError: it could not be prepared.
        """
        if self._ready < 0 or self._prepare is None:
            return
        said, poll = b"", select.poll()
        poll.register(self._ready, select.POLLIN)
        while poll.poll(_READY_SECONDS * 1000) and (data := os.read(self._ready, 1 << 12)):
            said += data
        os.close(self._ready)
        self._ready = -1
        if said != _PREPARED:
            reason = said.decode(errors="replace") or "it has ended, or hangs"
            raise HostError(f"the process that looks after the guest is not ready: {reason}")

    def arm(self) -> None:
        """From now on it acts if we die."""
        self._armed[0] = 1

    def disarm(self) -> None:
        """From now on it does not."""
        self._armed[0] = 0

    def close(self) -> None:
        """End the process; may be called more than once."""
        if self._pid:
            forked.kill(self._pid)
            forked.reap(self._pid)
            self._forget()

    def let_go(self) -> None:
        """Have it act now if it is armed, as if we had died; waits for it for a second at most."""
        if not self._pid:
            return
        pid = self._pid
        os.eventfd_write(self._go, 1)
        self._forget()
        forked.leave(pid, _LET_GO_SECONDS)

    def _forget(self) -> None:
        self._pid = 0
        for fd in (self._go, self._ready):
            if fd >= 0:
                os.close(fd)
        self._go = self._ready = -1

    def _watch(self, us: int, told: int) -> NoReturn:
        try:
            forked.stand_alone({us, self._go, told, *self._descriptors})
            if self._is_prepared(told):
                poll = select.poll()
                poll.register(us, select.POLLIN)
                poll.register(self._go, select.POLLIN)
                poll.poll()
                if self._armed[0]:
                    self._act()
        finally:
            os._exit(0)

    def _is_prepared(self, told: int) -> bool:
        """Prepare, in the guardian's process, and tell our process that it is done, or why it failed."""
        reason = _PREPARED
        try:
            if self._prepare:
                self._prepare()
        except FixedRamError as error:
            reason = error.message.encode()
        with contextlib.suppress(BrokenPipeError):  # our process is gone, or no longer waits
            os.write(told, reason)
        os.close(told)
        return reason == _PREPARED
