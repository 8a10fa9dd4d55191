"""Messages between processes: a few integers out, a few integers back; never page bytes.

A message is one datagram of a SOCK_SEQPACKET socket, so it arrives completely or, if its sender dies, not at all.
"""

from __future__ import annotations

import pickle
import socket
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, runs_of_ones
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.latency import Bins, added
from parallel_fixedram.core.shards import MAX_SHARD_PAGES, Shard

MAX_FINDINGS = MAX_SHARD_PAGES + WORD_PAGES
"""Most page ranges that a ShardDone lists. Only checks and comparisons find any, and their shards cannot have more."""

MAX_KEPT_FINDINGS = 1 << 16
"""Most page ranges that a sum over shards lists; further ones are only counted."""

_MAX_MESSAGE = 1 << 18


@dataclass(frozen=True, slots=True)
class Order:
    """Coordinator to worker: do this shard."""

    job: int
    """Number of the job in the pool's list."""
    shard: Shard


@dataclass(frozen=True, slots=True)
class Ready:
    """To the coordinator: this process is set up, and can be told what to do."""


class BadPages(NamedTuple):
    """Bad pages: those from ``first`` to ``first + pages`` of a block."""

    block: int
    first: int
    pages: int


@dataclass(slots=True)
class Tally:
    """What was done to the pages of a shard, or the sum over shards. Each job uses the fields that it needs."""

    written_pages: int = 0
    """Pages written because they hold data."""
    gap_pages: int = 0
    """Pages bridged between two others, because one call is cheaper than two."""
    zero_pages: int = 0
    """Pages found to be zero."""
    bytes: int = 0
    """Bytes moved to or from a file."""
    scan_seconds: float = 0.0
    """Time spent looking for zero pages, or for differences."""
    read_seconds: float = 0.0
    """Time spent reading pages from a file."""
    write_seconds: float = 0.0
    """Time spent writing pages, and punching holes."""
    digest_seconds: float = 0.0
    write_bins: Bins = ()
    """How many writes took how long; none where nobody counts."""
    bad_pages: int = 0
    """Pages that are not as they should be."""
    findings: list[BadPages] = field(default_factory=list)
    """Where these are: at most MAX_FINDINGS for a shard, MAX_KEPT_FINDINGS for a sum."""

    def counted(self, *, wanted: Bits, stored: Bits, gap_pages: int) -> None:
        """Count pages: those with 1 in ``wanted`` were examined, and those with 1 in ``stored`` written."""
        pages = int(np.count_nonzero(stored))
        self.written_pages += pages
        self.zero_pages += int(np.count_nonzero(wanted)) - pages
        self.gap_pages += gap_pages

    def found_bad(self, block: int, first: int, bad: NDArray[np.uint8]) -> None:
        """Count and list bad pages; ``bad`` is 1 for each of them, beginning with page ``first`` of a block."""
        self.bad_pages += int(np.count_nonzero(bad))
        for start, pages in runs_of_ones(bad)[: MAX_FINDINGS - len(self.findings)].tolist():
            self.findings.append(BadPages(block, first + start, pages))

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.write_bins = added((self.write_bins, other.write_bins))
        self.findings += other.findings[: max(MAX_KEPT_FINDINGS - len(self.findings), 0)]


_COUNTERS = tuple(name for name in Tally.__slots__ if name not in ("findings", "write_bins"))


@dataclass(frozen=True, slots=True)
class ShardDone:
    """Worker to coordinator: the shard is done."""

    shard: Shard
    tally: Tally
    started: float
    """When it began, on the clock of ``time.perf_counter``, which all processes of a host share."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """Worker to coordinator: the shard failed, or opening a job did."""

    error: FixedRamError


Message = Order | Ready | ShardDone | ShardFailed


def send(connection: socket.socket, message: Message) -> None:
    """Send one message."""
    connection.send(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: socket.socket, *, wait: bool = True) -> Message | None:
    """The next message; None if the other end is gone or, without ``wait``, if nothing has arrived."""
    try:
        data = connection.recv(_MAX_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
    except (ConnectionResetError, BlockingIOError):
        return None
    if not data:
        return None
    message: Message = pickle.loads(data)
    return message
