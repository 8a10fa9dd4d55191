"""Messages between coordinator, handler and spill writer of a snapshot; they never contain page bytes.

A message is one datagram of a SOCK_SEQPACKET socket, so it arrives completely or, if its sender dies, not at all.
"""

from __future__ import annotations

import pickle
import socket
from dataclasses import dataclass
from enum import StrEnum

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.reports.save import FaultSeconds
from parallel_fixedram.engine.workers.messages import Ready

_MAX_MESSAGE = 1 << 16


class Command(StrEnum):
    """From the coordinator to the others."""

    PROTECT = "protect"
    """Handler: protect all memory. Answer: Done."""
    FIX = "fix"
    """Handler: T is now. Answer: Done."""
    END = "end"
    """Handler: all is captured; release memory. Answers: Done, then Figures when nothing is protected any more.
    Spill writer: no more copies will come. Answer: Done when all are in the file."""
    ABANDON = "abandon"
    """Handler: release memory; the snapshot is given up. Answers: as to END."""


@dataclass(frozen=True, slots=True)
class Done:
    """The command was carried out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The process failed, and ends."""

    error: FixedRamError


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a handler has done, after T unless stated otherwise."""

    faults: int
    """Page faults: writes that had to wait."""
    ahead_groups: int
    """Groups copied before anybody waited: they had been written just before T."""
    copied_groups: int
    """Groups that were copied before they were written."""
    let_through: int
    """Groups that were written without a copy, because they were in the file already, or zero."""
    noted_groups: int
    """Groups that were written between being protected and T."""
    ring_waits: int
    """Faults that had to wait for room in the ring."""
    fault_seconds: FaultSeconds
    """From reading a fault to letting the write go on."""
    void: str | None
    """Why the snapshot is void; None if it is not."""


Answer = Ready | Done | Failed | Figures


def send(connection: socket.socket, message: Command | Answer) -> None:
    """Send one message."""
    connection.send(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: socket.socket, *, wait: bool = True) -> Command | Answer | None:
    """The next message; without ``wait``, None if none has arrived.

    Raises:
        EOFError: the other end is gone.
    """
    try:
        data = connection.recv(_MAX_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        data = b""
    if not data:
        raise EOFError
    message: Command | Answer = pickle.loads(data)
    return message
