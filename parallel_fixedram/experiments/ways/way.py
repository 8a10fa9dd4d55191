"""What a way is to the runner."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any, Protocol

from parallel_fixedram.core.errors import ContentsDiffer, HostError
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.guest_work import GuestWatch
from parallel_fixedram.experiments.measured_guest import MeasuredGuest
from parallel_fixedram.experiments.results import Bytes, Sample, Seconds, Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a case."""

    case: Case
    source: MeasuredGuest
    path: str
    """The file to write; there is none of that name yet."""
    seed: int
    number: int
    """Of the sample, from 0; below 0 for one that does not count."""
    watch: GuestWatch | None = None
    """Who looks at the guest meanwhile, and has to be told where it goes on."""

    @property
    def thorough(self) -> bool:
        """Whether to check its file as thoroughly as possible, which is done once per case."""
        return self.number == 0

    def wrong(self, what: str) -> ContentsDiffer:
        """The error for a file that is not what it should be."""
        return ContentsDiffer(f"{self.case.id}: {what}")


Stretch = tuple[float, float]
"""From when to when, by ``time.perf_counter``, which all processes share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run took, before its file is checked."""

    seconds: Seconds
    bytes: Bytes
    report: dict[str, Any] | None = None
    growth: tuple[tuple[int, int], ...] | None = None
    sequential: tuple[tuple[int, int], ...] | None = None
    work: tuple[int, ...] | None = None
    watch: Watch | None = None
    save_at: Stretch | None = None
    """When it was that ``seconds.total`` is about."""
    pause_at: Stretch | None = None
    """When the guest stood still."""
    qemu_cpu_seconds: float | None = None
    """Processor time of QEMUs that were started and have ended; None where there were none."""
    running: tuple[float, ...] | None = None
    """See results.Sample."""

    def sample(self, number: int, verified: str) -> Sample:
        """As a sample that counts."""
        return Sample(
            number=number,
            seconds=self.seconds,
            bytes=self.bytes,
            verified=verified,
            report=self.report,
            growth=self.growth,
            sequential=self.sequential,
            work=self.work,
            watch=self.watch,
            running=self.running,
        )


class Way(Protocol):
    """A way to write RAM to a file, or from a file to running guests."""

    def why_missing(self) -> str | None:
        """Why it cannot be used here; None if it can."""

    def run(self, run: Run) -> Measured:
        """Do it once, and say how long it took.

        Raises:
            FixedRamError: it failed.
        """

    def verify(self, run: Run) -> str:
        """Check the file of the run just done; returns one of results.VERIFIED.

        Raises:
            ContentsDiffer: a fast wrong file is no result.
        """


def clear(run: Run) -> None:
    """The same conditions for each run: no file, nothing waiting to be written, and no page cache if that is asked for.

    Raises:
        HostError: that cannot be had.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(run.path)
        os.sync()
    except OSError as error:
        raise HostError.from_os("cannot clear up before a run", error) from error
    if run.case.cache == "drop":
        drop_page_cache()


def drop_page_cache() -> None:
    """Forget what is in the page cache and on the disk, too.

    Raises:
        HostError: this is not allowed.
    """
    try:
        with open(tools.DROP_CACHES, "w", encoding="ascii") as file:
            file.write("1\n")  # the page cache; 2 would be inodes and names
    except OSError as error:
        raise HostError.from_os("cannot drop the page cache", error) from error


def file_bytes(path: str) -> tuple[int, int]:
    """Length of a file and what it takes on its file system."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise HostError.from_os(f"cannot look at {path!r}", error) from error
    return status.st_size, status.st_blocks * 512


def sync_file(path: str) -> None:
    """Return when all of a file that somebody else wrote is on stable storage."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os(f"cannot sync {path!r}", error) from error
