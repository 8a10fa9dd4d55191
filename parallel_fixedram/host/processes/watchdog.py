"""Watchdog: a small process that kills another one if that does not report in time that it is still working.

::

    watched process ---- beat: the time, in shared memory ----> watchdog, which looks four times as often as it must
           ^                                                        |
           +---- SIGKILL, by pidfd: never another process ----------+----> verdict, in shared memory

It has a session of its own, ignores the signals that a terminal or a service manager sends us, and keeps only the
descriptors that it needs. It ends when the process that it watches does.
"""

from __future__ import annotations

import os
import signal
import time
from enum import IntEnum
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.processes import forked, signals

_LOOKS = 4
"""How often it looks during the time for which the other process may be silent."""


class WatchdogVerdict(IntEnum):
    """What a watchdog has found."""

    FINE = 0
    ENDED = 1
    KILLED = 2


class Watchdog:
    """Watches another process from now on, until that ends or the watchdog is closed.

    Args:
        pidfd: the process to watch, borrowed.
        beat: when it last reported, CLOCK_MONOTONIC in nanoseconds, in shared memory, shape (1,).
        verdict: receives a WatchdogVerdict, in shared memory, shape (1,).
        seconds: how long it may be silent; noticed within 1.25 times that.

    Attributes:
        pid: the watchdog's process id.

    Raises:
        HostError: no process could be started.
    """

    def __init__(self, pidfd: int, beat: NDArray[np.uint64], verdict: NDArray[np.uint64], *, seconds: float) -> None:
        self.pid = 0
        try:
            with signals.held():
                pid = os.fork()
                if pid == 0:
                    _watch(pidfd, beat, verdict, seconds)
                self.pid = pid
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            self.close()
            raise HostError.from_os("cannot start the process that watches another one", error) from error

    def is_watching(self) -> bool:
        """Whether it is still there."""
        return self.pid > 0 and not forked.has_ended(self._pidfd)

    def close(self) -> None:
        """End the watchdog; may be called more than once."""
        if self.pid > 0:
            forked.kill(self.pid)
            forked.reap(self.pid)
            self.pid = 0
            os.close(self._pidfd)


def _watch(pidfd: int, beat: NDArray[np.uint64], verdict: NDArray[np.uint64], seconds: float) -> NoReturn:
    try:
        forked.stand_alone({pidfd})
        looked = time.monotonic()
        while not forked.has_ended(pidfd, seconds / _LOOKS):
            before, looked = looked, time.monotonic()
            if looked - before >= seconds:  # we were not scheduled, so perhaps nobody was: give it another chance
                continue
            if looked - int(beat[0]) / 1e9 > seconds:
                # before the signal, so that whoever sees the process end knows why
                verdict[0] = WatchdogVerdict.KILLED
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os._exit(0)
        verdict[0] = WatchdogVerdict.ENDED
    finally:
        os._exit(0)
