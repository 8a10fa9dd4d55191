"""How to save: five groups of options, each a value that refuses what it cannot be.

::

    SaveOptions
      gate        channels and capabilities, and whose rules say what goes together
      writing     how pages get into the file; None for what is to be chosen
      capture     how the file comes to hold RAM as it was at one instant
      disks       what becomes of the guest's disks
      publishing  what becomes of the file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from parallel_fixedram.core.capabilities import capabilities_for_restore, capabilities_for_save
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.profiles import TABLES, Profile
from parallel_fixedram.core.words import choice

MOST_CHANNELS = 4
"""Most channels that are chosen: past four the device decides (measured, and published for QEMU)."""

QUEUE_DEPTH = 64
"""Direct writes in flight of each worker; past this a device takes no more small ones per second."""

STALL_SECONDS = 30.0
"""How long a worker may neither move nor map a byte before it counts as stalled; noticed within twice this time."""

MAX_ROUNDS = 16

MAX_STALL_SECONDS = 1.0
"""How long a write of a guest may have to wait while a snapshot is taken."""

TRIAL_SNAPSHOTS = 20
"""Snapshots without a fault that show that they work on a host."""

CAPTURE_MEMORY = 256 << 20
"""Bytes of copies that may wait to be written while a snapshot is taken."""


class DirectIO(StrEnum):
    """Whether pages bypass the page cache."""

    ON = "on"
    """Always; an error where the file system refuses."""
    OFF = "off"
    AUTO = "auto"
    """Whatever is predicted to be faster; the page cache for rounds, the last of which is small."""


class CaptureMode(StrEnum):
    """How the file comes to hold RAM as it was at one instant."""

    AUTO = "auto"
    """The possible way with the shortest pause: ``snapshot``, else ``compare``, for a guest that runs; ``stopped`` for
    one that is stopped."""
    SNAPSHOT = "snapshot"
    """All pages while the guest runs, as they were at one instant: what it is about to write is copied first."""
    COMPARE = "compare"
    """All pages while the guest runs; then it is stopped, and those whose hash has changed follow."""
    ROUNDS = "rounds"
    """Rounds of pages that a dirty log names while the guest runs; the last one while it stands still."""
    STOPPED = "stopped"
    """All pages while the guest stands still."""


class ImageKind(StrEnum):
    """What a file is, besides a mapped-ram stream."""

    PLAIN = "plain"
    """Nothing else: QEMU loads it."""
    LIBVIRT = "libvirt"
    """A save image of libvirt, in its format ``sparse``: ``virsh restore`` loads it."""


class DisksMode(StrEnum):
    """What becomes of the disks that a guest writes to."""

    OVERLAY = "overlay"
    """The guest writes to overlays from the instant of the file on: the images stay as they were then."""
    NONE = "none"
    """They are left alone: their contents go on changing after the file's instant."""
    REFUSE = "refuse"
    """There must not be any."""


class Durability(StrEnum):
    """What has to be on stable storage when a save returns."""

    FULL = "full"
    """The file and its name."""
    NONE = "none"
    """Nothing: a power cut may lose the file, as with QEMU's own."""


class Cache(StrEnum):
    """What becomes of the file in the page cache."""

    KEEP = "keep"
    """Whatever the kernel leaves there: a restore soon afterwards finds it."""
    DROP = "drop"
    """It is taken out once it is on stable storage: its memory is for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Channels and capabilities of a save or restore.

    Attributes:
        channels: number of worker processes; more than one is multifd. None to choose as many as pay, which is one
            where the rules forbid more.
        experimental_multifd: lift the rule against fixed-ram with multifd.
        capabilities: further capabilities, on or off.
        profile: whose rules say what goes together.

    Raises:
        RequestError: it is no profile.
    """

    channels: int | None = 1
    experimental_multifd: bool = False
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    profile: Profile = Profile.FIXED_RAM

    def __post_init__(self) -> None:
        object.__setattr__(self, "profile", choice(Profile, self.profile, "profile"))

    @property
    def channels_or_one(self) -> int:
        """Number of channels where nobody chooses it."""
        return 1 if self.channels is None else self.channels

    def decided(self, channels: int) -> dict[str, bool]:
        """The capabilities of a save with so many channels.

        Raises:
            CapabilityError: they cannot be together.
        """
        on = capabilities_for_save(
            channels=channels,
            extra=self.capabilities,
            profile=self.profile,
            experimental=self.experimental_multifd,
        )
        asked = {TABLES[self.profile].canonical(name) or name: False for name in self.capabilities}
        return {**asked, **dict.fromkeys(on, True)}

    def decided_for_restore(self) -> frozenset[str]:
        """The capabilities of a restore that are on; one channel where their number is left open.

        Raises:
            CapabilityError: they cannot be together.
        """
        return frozenset(
            capabilities_for_restore(
                channels=self.channels_or_one,
                extra=self.capabilities,
                profile=self.profile,
                experimental=self.experimental_multifd,
            )
        )

    def most_channels(self) -> tuple[int, str]:
        """Most channels that there may be, and what forbids more.

        Raises:
            CapabilityError: what was asked for cannot be.
        """
        if self.channels is not None:
            self.decided(self.channels)
            return self.channels, ""
        self.decided(1)
        try:
            self.decided(2)
        except RequestError as error:
            return 1, f"more is multifd: {error.message}"
        return MOST_CHANNELS, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How pages get into the file.

    Attributes:
        direct_io: whether they bypass the page cache.
        gap_pages: gaps of up to so many pages between two runs are bridged; None to choose it.
        shard_pages: about how many pages a shard has; None to choose it.
        queue_depth: direct writes that each worker has in flight; 0 for one by one.
        calibrate: measure what writes cost in that folder, even if it is known from earlier.
        stall_seconds: how long a worker may neither move nor map a byte.
        time_writes: have an observer told how long single writes took.

    Raises:
        RequestError: a number out of its range.
    """

    direct_io: DirectIO = DirectIO.AUTO
    gap_pages: int | None = None
    shard_pages: int | None = None
    queue_depth: int = QUEUE_DEPTH
    calibrate: bool = False
    stall_seconds: float = STALL_SECONDS
    time_writes: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "direct_io", choice(DirectIO, self.direct_io, "direct_io"))
        _at_least(0, "gap pages", self.gap_pages)
        _at_least(1, "shard pages", self.shard_pages)
        _at_least(0, "writes in flight", self.queue_depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capturing:
    """How the file comes to hold RAM as it was at one instant.

    Attributes:
        mode: which way.
        max_rounds: most rounds of ``rounds``, the stopped one included.
        max_stall: how long a write of the guest may have to wait for a ``snapshot``, seconds; one that would wait
            longer is let through, and the snapshot is given up.
        capture_memory: how many bytes of copies of a ``snapshot`` may wait to be written.
        check_instant: copy all RAM while the guest stands still, which makes the pause long, and check the file against
            that copy, page by page, before it gets its name.

    Raises:
        RequestError: a number out of its range.
    """

    mode: CaptureMode = CaptureMode.AUTO
    max_rounds: int = MAX_ROUNDS
    max_stall: float = MAX_STALL_SECONDS
    capture_memory: int = CAPTURE_MEMORY
    check_instant: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", choice(CaptureMode, self.mode, "capture"))
        _at_least(1, "rounds", self.max_rounds)
        _at_least(1, "bytes of capture memory", self.capture_memory)
        if not 0.1 <= self.max_stall <= 60:
            raise RequestError(f"a stall of at most {self.max_stall:g} s, expected between 0.1 and 60")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """What becomes of the guest's disks.

    Attributes:
        mode: None for ``refuse`` if the guest runs, and ``none`` if it stands still: then they are its owner's to keep.
        folder: where overlays are made; None for beside each image.

    Raises:
        RequestError: a folder without overlays.
    """

    mode: DisksMode | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.mode is not None:
            object.__setattr__(self, "mode", choice(DisksMode, self.mode, "disks"))
        if self.folder is not None and self.mode is not DisksMode.OVERLAY:
            raise RequestError("a folder for overlays is for disks that go on with overlays")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """What becomes of the file.

    Attributes:
        image: what it is; None for ``libvirt`` where libvirt knows the machine and the stream starts at the beginning,
            else ``plain``.
        overwrite: replace an existing file, once the new one is complete.
        durability: whether it has to survive a power cut when the save returns.
        cache: whether it may stay in the page cache.
    """

    image: ImageKind | None = None
    overwrite: bool = False
    durability: Durability = Durability.FULL
    cache: Cache = Cache.KEEP

    def __post_init__(self) -> None:
        if self.image is not None:
            object.__setattr__(self, "image", choice(ImageKind, self.image, "image"))
        object.__setattr__(self, "durability", choice(Durability, self.durability, "durability"))
        object.__setattr__(self, "cache", choice(Cache, self.cache, "cache"))

    @property
    def durable(self) -> bool:
        """Whether the file is synced."""
        return self.durability is Durability.FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """How to save."""

    gate: Gate = field(default_factory=Gate)
    writing: Writing = field(default_factory=Writing)
    capture: Capturing = field(default_factory=Capturing)
    disks: Disks = field(default_factory=Disks)
    publishing: Publishing = field(default_factory=Publishing)

    @classmethod
    def of(
        cls,
        gate: Gate | None,
        writing: Writing | None,
        capture: Capturing | None,
        publishing: Publishing | None,
        disks: Disks | None = None,
    ) -> SaveOptions:
        """The groups that are given, and defaults for the others.

        Raises:
            CapabilityError: the gate refuses.
        """
        options = cls(
            gate=gate or Gate(),
            writing=writing or Writing(),
            capture=capture or Capturing(),
            disks=disks or Disks(),
            publishing=publishing or Publishing(),
        )
        options.gate.most_channels()
        return options


def _at_least(least: int, what: str, number: int | None) -> None:
    if number is not None and number < least:
        raise RequestError(f"{number} {what}, at least {least} is needed")
