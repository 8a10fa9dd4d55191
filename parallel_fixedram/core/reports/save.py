"""What a save did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from parallel_fixedram.core.reports.block import BlockReport
from parallel_fixedram.core.reports.choice import ChoiceReport


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One sweep over the dirty bitmap; the last one is the one with the guest stopped."""

    dirty_pages: int
    written_pages: int
    """Pages written because they hold data."""
    gap_pages: int
    """Pages of gaps that were bridged because one call is cheaper than two."""
    zero_pages: int
    while_running: bool
    """Whether the guest ran meanwhile."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport:
    """One of the phases of a save, which follow each other."""

    name: str
    """``disks``, ``decide``, ``reserve``, ``start``, ``before``, ``prepare``, ``pause``, ``after``, ``finish``,
    ``publish``, and ``check`` before that where it is asked for; ``prepare`` and ``pause`` once more for each time that
    the instant was torn."""
    started: float
    """Since the save began."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSeconds:
    """Where the time of a save went."""

    total: float
    """Until the file has its name, on stable storage if that was asked for."""
    prepare: float
    """Until the pause, or the last round where there is none: workers, maps, space, earlier rounds."""
    pause: float
    """From the request to stop to the moment the guest may go on; 0 for RAM that stood still already."""
    sync_disks: float
    """Of ``prepare``, to sync the disks of a running guest, so that ``stop`` has little to flush."""
    stop: float
    """Of the pause, until the guest stood still; 0 where there was none."""
    device_state: float
    """Until the device state was there, at the same time as the last round."""
    ram: float
    """The last round, the one with the guest stopped."""
    disks: float = 0.0
    """Of the pause, to move its disks to overlays."""
    cont: float
    """Of the pause, to let the guest go on; 0 where there was none."""
    copy: float = 0.0
    """Of the pause, to copy all RAM, where the file is checked against such a copy."""
    scan: float
    """Looking for zero pages, mean over the workers."""
    write: float
    """In write calls, mean over the workers."""
    digest: float
    sync: float
    publish: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveBytes:
    """How much was moved, and what it takes."""

    ram: int
    written: int
    """Page bytes written in all rounds, gaps included."""
    file: int
    """Length of the file."""
    allocated: int
    """What the file takes on its file system."""
    cached: int | None
    """What of it was left in the page cache; None where the kernel does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What one worker did."""

    shards: int
    written_pages: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSeconds:
    """How long writes of the guest had to wait, from when their fault was read until they went on."""

    median: float
    p99: float
    max: float
    bins: tuple[int, ...] = ()
    """How many of them waited how long (core/latency.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReport:
    """What a snapshot cost the guest and us; from the instant on if not said otherwise."""

    faults: int
    """Page faults: writes that had to wait."""
    ahead_groups: int
    """Groups of 64 pages copied before anybody waited: they had been written just before the instant."""
    copied_groups: int
    """Groups of 64 pages that were copied out before they were written."""
    let_through: int
    """Groups that were written with nothing to copy: they were in the file already, or zero."""
    noted_groups: int
    """Groups that were written between being protected and the instant."""
    spilled_pages: int
    """Pages that came into the file from such copies."""
    ring_waits: int
    """Faults that had to wait for room for a copy."""
    fault_seconds: FaultSeconds
    watch_seconds: float
    """Until writes to the guest's memory could be caught: its process asked, helpers started."""
    protect_seconds: float
    """To protect all of its memory, while it ran."""
    fix_seconds: float
    """Of the pause: to protect once more what had been written meanwhile."""
    let_go_seconds: float
    """How long we waited, after everything else, until none of its memory was protected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTrace:
    """A shard that was written: who, what, when."""

    worker: int
    """Number of the worker, from 0."""
    round: int
    block: int
    """Number of the block in the file's order."""
    first_page: int
    pages: int
    """Pages the shard spans, written or not."""
    offset: int
    """File offset of its first page."""
    bytes: int
    """Page bytes written."""
    started: float
    """Seconds since the save began."""
    ended: float
    write_bins: tuple[int, ...] = ()
    """How many of its writes took how long (core/latency.py); none where that was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedDisk:
    """A disk of the guest whose image stays what it was at the instant."""

    device: str
    """Its id, that of its drive, or its path among QEMU's objects."""
    image: str
    format: str
    overlay: str
    """The image that the guest goes on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveReport:
    """A finished save."""

    verb: ClassVar[str] = "save"
    schema: ClassVar[str] = "save"

    file: str
    machine: str
    """Machine type, by the name with a version that a QEMU needs (``-M``) to load the file."""
    channels: int
    direct_io: bool
    capabilities: Mapping[str, bool]
    blocks: tuple[BlockReport, ...]
    rounds: tuple[RoundReport, ...]
    phases: tuple[PhaseReport, ...]
    seconds: SaveSeconds
    bytes: SaveBytes
    choice: ChoiceReport
    workers: tuple[WorkerReport, ...]
    snapshot: SnapshotReport | None
    """Of a snapshot; None for another capture."""
    disks: tuple[SavedDisk, ...] = ()
    """Disks that went on with overlays."""
    image: str = "plain"
    """What the file is: ``plain``, which QEMU loads, or ``libvirt``, which ``virsh restore`` loads."""
    host: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked, a sentence each."""
