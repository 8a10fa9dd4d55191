"""EventLoop: asyncio's, run only inside blocking calls, one coroutine at a time.

::

    run --- a moment ---+--- a moment ---+--- a moment ---> result, or an error
              loop        handlers, if     loop
              runs       signals arrived   runs

It runs only while signals are held back: otherwise an exception from a signal handler would be raised in whichever task
is running, which would take it for its own. So no thread and no task outlives a call, and an interrupted call leaves
the loop ready for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.processes import forked, signals

LAST_WORDS_SECONDS = 0.1
"""How long the last words of a process may take to arrive after its end."""

_MOMENT_SECONDS = 0.05  # a signal takes effect after this time at the latest

_T = TypeVar("_T")
Work = Callable[[], Coroutine[Any, Any, Any]]
"""Makes the coroutine."""

_log = logging.getLogger(__name__)


class LateError(Exception):
    """The call did not finish in time."""


class EndedError(Exception):
    """The process that the call was waiting for has ended."""


class EventLoop:
    """Calls may come from any thread, but never two at once, and not from inside a running event loop.

    Args:
        pidfd: descriptor of the process at the other end; calls end when that process does.

    Attributes:
        pidfd: as given; it may be set later, and the caller closes it.

    Raises:
        HostError: no descriptors are left for it.
    """

    def __init__(self, pidfd: int | None) -> None:
        self.pidfd = pidfd
        self._task: asyncio.Task[Any] | None = None
        try:
            self._loop = asyncio.new_event_loop()
        except OSError as error:
            raise HostError.from_os("cannot speak QMP", error) from error
        self._loop.set_exception_handler(lambda _loop, context: _log.debug("event loop: %s", context))

    def run(self, work: Work, timeout: float) -> Any:
        """Run a coroutine to its end, and return what it returns.

        Raises:
            LateError: it takes longer than ``timeout`` seconds.
            EndedError: the process ended without an answer.
        """
        if self._task is not None:  # a signal kept the last call from its clean-up
            self.turn(self._abandon)
        deadline = time.monotonic() + timeout
        try:
            while not self.turn(lambda: self._advance(work, deadline)):
                pass
            if self._task is not None and self._task.done():
                task, self._task = self._task, None
                return task.result()
            raise EndedError if self.has_ended() else LateError
        finally:
            if self._task is not None:
                self.turn(self._abandon)

    def turn(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a short coroutine to its end; signals that arrive meanwhile are handled after that."""
        with signals.held():
            return self._loop.run_until_complete(work())

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether the process has ended, or ends within ``seconds``."""
        return self.pidfd is not None and forked.has_ended(self.pidfd, seconds)

    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._loop.is_closed()

    def close(self, work: Work) -> None:
        """End the call that is under way, run a last coroutine, and close the loop; signals have to be held back."""

        async def end() -> None:
            await self._abandon()
            await work()
            await self._loop.shutdown_asyncgens()

        try:
            self._loop.run_until_complete(end())
        finally:
            self._loop.close()

    async def _advance(self, work: Work, deadline: float) -> bool:
        """Let the call go on for a moment; returns whether there is nothing more to wait for."""
        if self._task is None:
            self._task = self._loop.create_task(work())
        waiting: set[asyncio.Future[Any]] = {self._task}
        if self.pidfd is not None:
            ended = self._loop.create_future()
            waiting.add(ended)
            self._loop.add_reader(self.pidfd, ended.cancel)  # cancel() may be called more than once
        try:
            seconds = min(_MOMENT_SECONDS, max(0.0, deadline - time.monotonic()))
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self.pidfd is not None:
                self._loop.remove_reader(self.pidfd)
        if self._task.done():
            return True
        if self.has_ended():  # its last words have arrived already, but may not be processed yet
            await asyncio.wait({self._task}, timeout=LAST_WORDS_SECONDS)
            return True
        return time.monotonic() >= deadline

    async def _abandon(self) -> None:
        """Cancel the call; the QMP library drops an answer to it that comes later."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
