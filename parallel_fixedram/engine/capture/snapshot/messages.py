"""What coordinator, handler and spill writer of a snapshot say to each other; never page bytes.

One message is one datagram of a SOCK_SEQPACKET socket, so it arrives whole or, when its sender dies, not at all.
"""

from __future__ import annotations

import pickle
import socket
from dataclasses import dataclass
from enum import StrEnum

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.reports.save import FaultSeconds

_MAX_MESSAGE = 1 << 16


class Command(StrEnum):
    """Coordinator to the others."""

    PROTECT = "protect"
    """Handler: protect all memory. Answer: Done."""
    FIX = "fix"
    """Handler: now is T. Answer: Done."""
    END = "end"
    """Handler: all is captured; let memory go. Answers: Done, and Figures when nothing is protected any more.
    Spill writer: no more copies come. Answer: Done when all are in the file."""
    ABANDON = "abandon"
    """Handler: let memory go, whatever becomes of the snapshot. Answers: as to END."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From now on it hears commands."""


@dataclass(frozen=True, slots=True)
class Done:
    """It is done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot be done, and the process ends."""

    error: FixedRamError


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a handler has done, after T if not said otherwise."""

    faults: int
    """Page faults: writes that had to wait."""
    ahead_groups: int
    """Groups copied before anybody waited: they had been written just before T."""
    copied_groups: int
    """Groups copied out before they were written."""
    let_through: int
    """Groups that were written with nothing to copy: they were in the file already, or zero."""
    noted_groups: int
    """Groups that were written between being protected and T."""
    ring_waits: int
    """Faults that had to wait for room in the ring."""
    fault_seconds: FaultSeconds
    """From reading a fault to letting the write go on."""
    void: str | None
    """Why the snapshot is worth nothing; None if it is worth something."""


Answer = Ready | Done | Failed | Figures


def send(connection: socket.socket, message: Command | Answer) -> None:
    """Send one message."""
    connection.send(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: socket.socket, *, wait: bool = True) -> Command | Answer | None:
    """The next message; None when none has come and it is not waited for.

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
