"""Pause: the time for which a machine stands still. It ends whatever happens inside it.

::

    stop |  device state (queried in a thread of its own)  | cont
         |  the last round, by the workers                 |

Nothing else belongs here: a guest is waiting.
"""

from __future__ import annotations

import contextlib
import gc
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.host.processes import signals

LONG_STOP_SECONDS = 0.05
"""A stop that takes longer is worth a note."""


class Pause:
    """Context manager: the machine stands still inside it, and goes on afterwards if it ran before.

    Args:
        machine: what to stop.

    Attributes:
        was_running: whether it ran.
        torn: what somebody did meanwhile that makes what we read worthless, as a sentence; None if it is one instant.
        sync_disks_seconds: how long syncing its disks took, before the pause.
        seconds: from the request to stop until it may go on.
        stop_seconds: of ``seconds``, until it stood still.
        ram_seconds: of ``seconds``, while its RAM was read; set by whoever read it.
        state_seconds: how long its device state took, concurrently with everything else.
        disks_seconds: of ``seconds``, while its disks were put on overlays; set by whoever did that.
        cont_seconds: of ``seconds``, to let it go on.
        copy_seconds: of ``seconds``, to copy its RAM for a check; set by whoever did that.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._thread = ThreadPoolExecutor(1, "device-state")
        self._state: Future[bytes] | None = None
        self._collects_garbage = self._ended = False
        self.was_running = False
        self.torn: str | None = None
        self._notes: list[str] = []
        self.sync_disks_seconds = 0.0
        self.seconds = self.stop_seconds = self.ram_seconds = 0.0
        self.state_seconds = self.disks_seconds = self.cont_seconds = self.copy_seconds = 0.0

    def prepare(self) -> None:
        """Get ready while nobody is waiting (Machine.get_ready, Machine.sync_disks)."""
        self._thread.submit(lambda: None).result()  # starts the thread
        started = time.perf_counter()
        for note in self._machine.sync_disks():
            if note not in self._notes:
                self._notes.append(note)
        self.sync_disks_seconds += time.perf_counter() - started
        self._machine.get_ready()

    @property
    def notes(self) -> list[str]:
        """Which disks could not be synced; and if stopping took long, a note that says so and why."""
        if not self.was_running or self.stop_seconds < LONG_STOP_SECONDS:
            return self._notes
        why = "QEMU completes the requests of all disks and flushes them before its guest stands still"
        return [
            *self._notes,
            f"{1000 * self.stop_seconds:.0f} ms of the pause passed before the guest stood still: {why}",
        ]

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        try:
            # a garbage collection touches every page of this process, and after a fork copies it: tens of milliseconds
            self._collects_garbage = gc.isenabled()
            gc.disable()
            self.was_running = self._machine.pause()
            self.stop_seconds = time.perf_counter() - self._started
            return self
        except BaseException as error:
            self._end(error)  # the machine may have stopped before the answer was lost
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with signals.held():  # a signal must not come between the guest and its resumption
                self._end(error)
        except BaseException as late:
            if not self._ended:  # a signal came before it could be held back
                self._end(late)
            raise

    def _end(self, error: BaseException | None) -> None:
        self._ended = True
        try:
            self._thread.shutdown(cancel_futures=True)  # first: the monitor takes one request at a time
            resumed = time.perf_counter()
            # the first error matters more than one here
            with contextlib.suppress(*([FixedRamError] if error else [])):
                self.torn = self._machine.resume()
            ended = time.perf_counter()
            self.cont_seconds, self.seconds = ended - resumed, ended - self._started
        finally:
            if self._collects_garbage:
                gc.enable()

    def begin_device_state(self) -> None:
        """Have the machine write its device state, without waiting for it."""
        self._state = self._thread.submit(self._ask)

    def device_state(self) -> bytes:
        """Wait for the device state (Machine.device_state)."""
        assert self._state is not None, "begin_device_state() comes first"
        return self._state.result()

    def _ask(self) -> bytes:
        started = time.perf_counter()
        try:
            return self._machine.device_state()
        finally:
            self.state_seconds = time.perf_counter() - started
