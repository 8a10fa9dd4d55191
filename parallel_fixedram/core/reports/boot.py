"""Guests that were started from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestReport:
    """A QEMU that was started from a file and lives on."""

    name: str
    """By which ``guests`` knows it."""
    pid: int
    qmp: str
    """Path of its QMP socket."""
    log: str
    """Path of what it prints."""
    status: str
    """Its run state: ``running``, ``paused`` ..."""
    disks: tuple[str, ...] = ()
    """Paths of the overlays that its disks write to, in the order of the disks that the file records."""
    id: str = ""
    """Of a clone with an identity of its own: what it reads in fw_cfg, and its vmgenid's GUID; a UUID."""
    seconds: float = 0.0
    """From the start of the first QEMU until this guest was told to run, or loaded if it is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSeconds:
    """Where the time of starting guests from a file went."""

    total: float
    """From the request to the moment when all guests run."""
    fill: float
    """Filling shared memory with pages; 0 where QEMU loads them itself or maps the file."""
    start: float
    """From the first QEMU's start until all of them answered."""
    load: float
    """QEMU's loading, all guests together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """Guests that were started from a file."""

    schema: ClassVar[str] = "boot"

    verb: str
    """``restore`` or ``clone``."""
    file: str
    how: str
    """How RAM got into the guests, a few words."""
    channels: int
    direct_io: bool
    guests: tuple[GuestReport, ...]
    changes: tuple[str, ...]
    """What was replaced in the command line, a sentence each."""
    verified: bool
    """Whether every page was checked against its digest."""
    seconds: BootSeconds
    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""
