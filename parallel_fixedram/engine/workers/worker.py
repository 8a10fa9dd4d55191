"""The life of a worker process: open the jobs, report ready, do shards until the coordinator is gone.

A worker is forked from the coordinator, so it inherits jobs, descriptors and shared bitmaps. It dies with the
coordinator (PR_SET_PDEATHSIG), leaves Ctrl-C to it, and never returns to the code that forked it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import NoReturn, Protocol

from parallel_fixedram.core.errors import FixedRamError, WorkerError
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.workers.messages import Order, Ready, ShardDone, ShardFailed, Tally, receive, send
from parallel_fixedram.host.processes import forked

logger = logging.getLogger(__name__)


class Job(Protocol):
    """One kind of work on shards; made by the coordinator, used by workers."""

    def open(self) -> None:
        """Prepare this process; called once in every worker before any shard."""

    def run(self, shard: Shard) -> Tally:
        """Do one shard. Doing it again, completely or after half of it, gives the same result.

        Raises:
            FixedRamError: it cannot be done, and other workers could not do it either.
        """


def work(
    connection: socket.socket, jobs: Sequence[Job], coordinator: int, inherited: Sequence[socket.socket]
) -> NoReturn:
    """Be a worker; ends the process.

    Args:
        connection: to the coordinator.
        jobs: what it can be told to do.
        coordinator: the coordinator's process id.
        inherited: the coordinator's sockets, to be closed here.
    """
    code = 1
    try:
        forked.settle_in(coordinator)
        gc.freeze()  # collecting what was inherited would copy all of it
        for each in inherited:
            each.close()
        for job in jobs:
            job.open()
        send(connection, Ready())
        while isinstance(order := receive(connection), Order):
            started = time.perf_counter()
            tally = jobs[order.job].run(order.shard)
            send(connection, ShardDone(order.shard, tally, started, time.perf_counter() - started))
        code = 0
    except FixedRamError as error:
        send(connection, ShardFailed(error))
    except BrokenPipeError:
        pass  # the coordinator has given up
    except BaseException as error:
        logger.debug("worker failed", exc_info=True)
        with contextlib.suppress(OSError):
            send(connection, ShardFailed(WorkerError.from_any("a worker failed", error)))
    finally:
        os._exit(code)
