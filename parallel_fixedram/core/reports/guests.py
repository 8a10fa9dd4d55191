"""Guests that commands have started, and their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingGuest:
    """A QEMU that a command has started and that still lives."""

    name: str
    pid: int
    qmp: str
    """Path of its QMP socket."""
    log: str
    """Path of what it prints."""
    file: str
    """What it was started from."""
    since: float
    """When it was handed over, seconds since the epoch."""
    memory: int | None
    """Bytes that it takes for itself, without what it maps from the file; None where the system does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedGuest:
    """A QEMU that has ended by itself since somebody last looked; its run folder is gone now."""

    name: str
    pid: int
    file: str
    said: str
    """The last lines that QEMU printed itself, joined into one; usually empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedGuest:
    """A QEMU that was ended."""

    name: str
    pid: int
    how: str
    """By ``quit``, ``SIGTERM``, ``SIGKILL``, or ``itself`` before any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestsReport:
    """Guests that were started from files."""

    verb: ClassVar[str] = "guests"
    schema: ClassVar[str] = "guests"

    guests: tuple[LivingGuest, ...]
    """Those that are alive; empty where some were to be ended."""
    ended: tuple[EndedGuest, ...]
    stopped: tuple[StoppedGuest, ...]
    notes: tuple[str, ...]
    """What could not be looked at, a sentence each."""
