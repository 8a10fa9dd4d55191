"""WorkerPool: worker processes that do shards, and survive the loss of some of them.

::

    coordinator --Order--> worker 0       one shard in flight per worker, first in a part of RAM of its own
         |      <-ShardDone--             if a worker dies, its shard goes to another one
         +------ ...        worker n-1    a worker that stalls is killed; its shard waits until it is really gone

``multiprocessing.Pool`` never completes the task of a killed worker, and ``ProcessPoolExecutor`` gives up altogether.
Here a shard is idempotent, so losing a worker only costs a repetition. A worker's pidfd shows its end immediately.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import TracebackType
from typing import Self

from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import HostError, RequestError, WorkerError
from parallel_fixedram.core.save_options import STALL_SECONDS
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.workers.messages import Order, Ready, ShardDone, ShardFailed, Tally, receive, send
from parallel_fixedram.engine.workers.worker import Job, work
from parallel_fixedram.host.processes import forked, signals

logger = logging.getLogger(__name__)

MAX_READERS = 4
"""Most workers that only read, by default: no capability limits them, but more do not help."""

OnDone = Callable[[ShardDone, int], None]
"""Called with what was done, and the index of the worker that did it."""


@dataclass(slots=True)
class Worker:
    """The coordinator's view of a worker."""

    index: int
    pid: int
    connection: socket.socket
    pidfd: int = -1
    ready: bool = False
    shard: Shard | None = None
    deadline: float = 0.0
    moved_bytes: int = 0
    """Bytes that it had moved at the last call of ``has_moved``."""
    killed: bool = False
    alive: bool = True
    shards: int = 0
    """Shards done."""
    seconds: float = 0.0
    """Time spent on these."""
    tally: Tally = field(default_factory=Tally)

    @property
    def descriptors(self) -> set[int]:
        """Descriptors that are readable when it has sent a message or ended."""
        return {self.connection.fileno(), self.pidfd}

    def has_moved(self) -> bool:
        """Whether it has moved bytes since the last call. If so, a worker past its deadline is slow, and not stalled.

        Newly mapped memory counts as well: a worker that only reads zero pages moves nothing else.
        """
        import psutil  # importing it takes longer than writing a small save, and it is hardly ever needed

        with contextlib.suppress(psutil.Error, OSError, RuntimeError):
            process = psutil.Process(self.pid)
            io = process.io_counters()
            before, self.moved_bytes = self.moved_bytes, io.read_chars + io.write_chars + process.memory_info().rss
            return self.moved_bytes != before
        return False

    def bury(self, *, wait: bool = True) -> str:
        """Reap a dead worker; returns how it ended."""
        self.alive = False
        self.connection.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        return forked.reap(self.pid) if wait else "hangs"


class Parts:
    """The shards of one run, dealt so that each worker gets the same part of RAM in every run.

    Touching a page for the first time costs a process as much as reading it twice (measured).

    Args:
        shards: from ``plan_shards``.
        workers: number of workers.
    """

    def __init__(self, shards: Sequence[Shard], workers: int) -> None:
        ends = list(accumulate(shard.pages for shard in shards))
        self._queues: list[deque[Shard]] = [deque() for _ in range(workers)]
        for shard, end in zip(shards, ends, strict=True):
            middle = end - shard.pages / 2
            self._queues[min(int(middle / max(ends[-1], 1) * workers), workers - 1)].append(shard)

    def own(self, worker: int) -> Shard | None:
        """Take the next shard of a worker's own part."""
        return self._queues[worker].popleft() if self._queues[worker] else None

    def other(self, worker: int) -> Shard | None:
        """Take the last shard of the longest other part, for a worker that is done with its own."""
        longest = max(self._queues, key=len)
        return longest.pop() if longest and longest is not self._queues[worker] else None

    def again(self, worker: int, shard: Shard) -> None:
        """Put back a shard that this worker did not finish."""
        self._queues[worker].appendleft(shard)


class WorkerPool:
    """Context manager around ``count`` worker processes that can do each of ``jobs``.

    Args:
        jobs: what the workers can do; ``run`` takes an index into this list.
        count: number of workers, at least 1.
        stall_seconds: how long a worker may go without moving or mapping a byte.

    Raises:
        RequestError: fewer than one worker.
        HostError: a worker could not be started, or could not open a job.
    """

    def __init__(self, jobs: Sequence[Job], count: int, *, stall_seconds: float = STALL_SECONDS) -> None:
        if count < 1:
            raise RequestError(f"{count} workers, at least 1 is needed")
        self._jobs = jobs
        self._count = count
        self._stall_seconds = stall_seconds
        self._poll = select.poll()
        self.workers: list[Worker] = []

    @undone_if_it_fails
    def __enter__(self) -> Self:
        for index in range(self._count):
            self._start(index)
        self._await_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        living = [worker for worker in self.workers if worker.alive]
        # all are killed before the first is waited for, so that they end at the same time
        for worker in living:
            forked.kill(worker.pid)
        for worker in living:
            worker.bury(wait=not worker.killed)  # do not wait for one that hangs in the kernel

    def run(self, job: int, shards: Sequence[Shard], on_done: OnDone | None = None) -> Tally:
        """Do every shard and return the sum of what was done; ``on_done`` is called for each shard when it is done.

        Raises:
            WorkerError: no worker is left.
            FixedRamError: a shard failed in a worker.
        """
        pending, total, left = Parts(shards, len(self.workers)), Tally(), len(shards)
        while left:
            self._hand_out(job, pending)
            for worker in self._wait():
                message = receive(worker.connection, wait=False)
                if isinstance(message, ShardDone):
                    worker.shard = None
                    worker.shards += 1
                    worker.seconds += message.seconds
                    worker.tally.add(message.tally)
                    total.add(message.tally)
                    left -= 1
                    if on_done:
                        on_done(message, worker.index)
                elif isinstance(message, ShardFailed):
                    raise message.error
                elif message is None:
                    self._lost(worker, pending)
        return total

    def dismiss(self) -> None:
        """There is no more work: let workers end, without waiting for them here."""
        for worker in self.workers:
            if worker.alive:
                worker.connection.shutdown(socket.SHUT_RDWR)

    def _start(self, index: int) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise HostError.from_os("cannot start a worker", error) from error
        coordinator = os.getpid()
        try:
            # a signal between these lines would leave a process that nobody knows of
            with signals.held():
                pid = os.fork()
                if pid == 0:
                    work(theirs, self._jobs, coordinator, [ours, *(other.connection for other in self.workers)])
                worker = Worker(index, pid, ours, deadline=time.monotonic() + self._stall_seconds)
                self.workers.append(worker)
            worker.pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise HostError.from_os("cannot start a worker", error) from error
        finally:
            # as long as we have this end as well, the socket does not tell that the worker is gone
            theirs.close()
        self._poll.register(ours, select.POLLIN)
        self._poll.register(worker.pidfd, select.POLLIN)

    def _await_ready(self) -> None:
        while not all(worker.ready for worker in self.workers if worker.alive):
            for worker in self._wait():
                message = receive(worker.connection, wait=False)
                if isinstance(message, ShardFailed):
                    raise message.error
                if isinstance(message, Ready):
                    worker.ready = True
                    worker.deadline = 0.0
                else:
                    self._lost(worker, Parts((), 1))

    def _hand_out(self, job: int, pending: Parts) -> None:
        idle = [worker for worker in self.workers if worker.alive and worker.shard is None]
        # first all get shards of their own parts, so that nobody takes one whose worker is idle as well
        for worker, take in [*((each, pending.own) for each in idle), *((each, pending.other) for each in idle)]:
            if worker.shard is None and (shard := take(worker.index)):
                worker.shard = shard
                worker.deadline = time.monotonic() + self._stall_seconds
                # if it is gone, _wait will report the end of its socket next
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    send(worker.connection, Order(job, shard))

    def _wait(self) -> list[Worker]:
        """Workers that have sent a message or ended; kills stalled ones."""
        busy = [worker for worker in self.workers if worker.alive and (worker.shard or not worker.ready)]
        timeout = max(min(worker.deadline for worker in busy) - time.monotonic(), 0.0)
        # a millisecond more, so that the deadline has passed
        ready = {fd for fd, _ in self._poll.poll(timeout * 1000 + 1)}
        now = time.monotonic()
        for worker in busy:
            if worker.deadline < now and not worker.descriptors & ready:
                if worker.has_moved():
                    worker.deadline = time.monotonic() + self._stall_seconds
                    continue
                if worker.killed:
                    raise WorkerError(f"worker {worker.index} hangs and cannot be killed")
                logger.warning("killing worker %d, which has stalled", worker.index)
                forked.kill(worker.pid)
                worker.killed, worker.deadline = True, now + self._stall_seconds
        return [worker for worker in self.workers if worker.alive and worker.descriptors & ready]

    def _lost(self, worker: Worker, pending: Parts) -> None:
        for descriptor in worker.descriptors:
            self._poll.unregister(descriptor)
        # after that: poll(2) would report closed descriptors at once, for ever
        how = worker.bury()
        if worker.shard is not None:
            pending.again(worker.index, worker.shard)
            worker.shard = None
        logger.warning("worker %d %s; its shard goes to another one", worker.index, how)
        if not any(other.alive for other in self.workers):
            raise WorkerError(f"no worker is left, the last one {how}")


def readers() -> int:
    """Default number of workers that only read: one per processor, at most MAX_READERS."""
    return min(len(os.sched_getaffinity(0)), MAX_READERS)
