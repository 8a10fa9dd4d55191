"""What the verbs report: frozen values that go to JSON and come back.

Seconds are floats, bytes are integers; a number that is neither has its unit in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from parallel_fixedram.core.schemas import check, stamped

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """One RAMBlock in the file."""

    idstr: str
    used_length: int
    page_size: int
    """Target page size in bytes."""
    pages: int
    data_pages: int
    """Pages present in the file."""
    zero_pages: int
    bitmap_offset: int
    pages_offset: int


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
    cont: float
    """Of the pause, to let the guest go on; 0 where there was none."""
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
class ChoiceReport:
    """How pages are written, what was chosen of it and why."""

    channels: int
    direct_io: bool
    gap_pages: int
    """Gaps of up to so many pages are bridged."""
    shard_pages: int
    """About how many pages a shard has."""
    capture: str
    """How the file comes to hold one instant: ``compare``, ``rounds`` or ``stopped``."""
    why: tuple[str, ...]
    """A sentence for everything that was left open."""
    predicted_write_seconds: float
    """What writing the pages takes, if no page that may hold something is zero; with ``compare`` from the moment the
    guest stands still."""
    predicted_stable_seconds: float
    """Until the file is on stable storage, or complete where it is not synced; digests included."""
    measured_write_seconds: float | None
    """What the first of these two took; None for a plan."""
    measured_stable_seconds: float | None
    """What the second one took, without measuring what writes cost; None for a plan."""
    measured_by_predicted: float | None
    """How many times as long as predicted it took until the file was on stable storage; None for a plan."""
    model: Mapping[str, Any]
    """What writes cost: seconds a ``call`` and a ``byte``, by number of channels; ``source`` says who measured it."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a save would do."""

    verb: ClassVar[str] = "plan"
    schema: ClassVar[str] = "plan"

    file: str
    ram: int
    """Bytes of RAM."""
    data_pages: int
    """Pages that may hold something; those that turn out to be zero are not written."""
    runs: int
    """Maximal runs of such pages."""
    calls: int
    """Writes that they are joined into."""
    bytes: int
    """Bytes of those."""
    waits: bool
    """Whether a guest runs now, and would stand still while its pages are written."""
    choice: ChoiceReport
    host: Mapping[str, Any]
    seconds: float
    """How long it took to find out."""


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
    host: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSeconds:
    """Where the time of a restore went."""

    total: float
    read: float
    """In read calls, mean over the workers."""
    write: float
    """Filling the destination, mean over the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBlock:
    """One RAMBlock that was restored."""

    idstr: str
    path: str
    used_length: int
    data_pages: int
    zero_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """A finished restore."""

    verb: ClassVar[str] = "restore"
    schema: ClassVar[str] = "restore"

    file: str
    channels: int
    direct_io: bool
    """Whether pages were read past the page cache, in which the file was not."""
    blocks: tuple[RestoredBlock, ...]
    left_out: tuple[str, ...]
    """Blocks of the file that no destination was given for."""
    verified: bool
    """Whether every page was held against its digest."""
    seconds: RestoreSeconds
    bytes: int
    """Page bytes read from the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Pages, or other bytes, that are not what they should be."""

    what: str
    """What does not match, in a few words."""
    idstr: str | None
    """The block, or None for bytes that belong to none."""
    first_page: int | None
    pages: int
    """Number of pages, 0 for bytes that are not pages."""
    offset: int | None
    """File offset of the first byte concerned."""

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at {self.offset:#x}"
        if self.first_page is None:
            return f"{self.what}{place}" if self.idstr is None else f"block {self.idstr!r}: {self.what}{place}"
        last = self.first_page + self.pages - 1
        which = f"page {self.first_page}" if self.pages == 1 else f"pages {self.first_page}-{last}"
        return f"block {self.idstr!r} {which}{place}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A verification that ran to its end."""

    verb: ClassVar[str] = "verify"
    schema: ClassVar[str] = "verify"

    file: str
    ok: bool
    quick: bool
    digests: bool
    """Whether the file carries digests and they were checked."""
    ram: tuple[str, ...]
    """Blocks compared against live RAM, or that of the QEMU that loaded the file."""
    loaded_by: str | None
    """The program that loaded the file for that; None where none did."""
    ram_bytes: int
    """Bytes of the blocks that were compared with RAM."""
    blocks: tuple[BlockReport, ...]
    stale_pages: int | None
    """Zero pages whose place in the file holds other bytes; None when nobody looked."""
    bad_pages: int
    differences: tuple[Difference, ...]
    """What was found, the first of it if there is very much."""
    truncated: bool
    """Whether there is more than ``differences`` lists."""
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """A RAMBlock that is not in both files with the same length."""

    idstr: str
    length_a: int | None
    """Bytes; None where the file has no such block."""
    length_b: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """A comparison of two files that ran to its end."""

    verb: ClassVar[str] = "diff"
    schema: ClassVar[str] = "diff"

    file_a: str
    file_b: str
    equal: bool
    differing_pages: int
    differences: tuple[Difference, ...]
    """Differing ranges, ascending by block and page; the first of them if there are very many."""
    truncated: bool
    """Whether there are more ranges than ``differences`` lists."""
    only_in_a: tuple[str, ...]
    """Blocks that the other file has not, or has with another length."""
    only_in_b: tuple[str, ...]
    not_compared: tuple[NotCompared, ...]
    """The same blocks with their lengths."""
    seconds: float


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
    """What of the command line was replaced, a sentence each."""
    verified: bool
    """Whether every page was held against its digest."""
    seconds: BootSeconds
    notes: tuple[str, ...] = ()
    """What the user has to know, a sentence each."""


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
    """The last lines that QEMU printed of its own, as one; mostly empty."""


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
    """Those that live; empty where some were to be ended."""
    ended: tuple[EndedGuest, ...]
    stopped: tuple[StoppedGuest, ...]
    notes: tuple[str, ...]
    """What could not be looked at, a sentence each."""


def to_json(report: Any) -> dict[str, Any]:
    """A report as a JSON object, with its schema, version and verb first."""
    return stamped(report.schema, {"verb": report.verb, **asdict(report)})


def from_json(kind: type[T], data: Any) -> T:
    """The report that ``to_json`` made ``data`` of; one that says no schema is older than schemas.

    Raises:
        FormatError: it is of another schema or version.
        KeyError: a field is missing.
    """
    if "schema" in data:
        check(data, kind.schema)  # type: ignore[attr-defined]  # all reports have one
    value: T = _build(kind, data)
    return value


def _build(kind: Any, data: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{field.name: _build(hints[field.name], data[field.name]) for field in fields(kind)})
    if get_origin(kind) is tuple:
        return tuple(_build(get_args(kind)[0], item) for item in data)
    return data
