"""What a set of runs measured: frozen values that go to JSON and come back.

One file holds one run set. It is replaced after every sample, so that whatever ends the runs, each sample that was
taken is there, and none is there by half. Seconds are floats, bytes are integers; null stands for what a way cannot
tell.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from parallel_fixedram.core.errors import FormatError, HostError, RequestError
from parallel_fixedram.core.plain import from_plain
from parallel_fixedram.core.reports.doctor import Finding
from parallel_fixedram.core.schemas import check, stamped

_FIRST_SCHEMA = 1
"""What files of version 1 have as ``schema``; they are otherwise like those of version 2."""

VERIFIED = ("ram", "digests", "loaded", "structure", "size", "no")
"""How the file of a sample was checked, the strongest way first: every page compared with live RAM; every page held
against its digest; loaded by a QEMU to the end; structure, but no page; length only; no file, or nobody looked."""

_PART = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long a run took."""

    total: float
    """Until everything is on stable storage: the file and, for ours, its name. Without it where
    ``durability`` is none. For scan and copy: the pass. For guests started from a file: until all of them run."""
    last_write: float | None = None
    """Until the last page was written; with ``dirty``, the second round alone."""
    pause: float | None = None
    """How long the guest stood still; None where none was running."""
    lost: float | None = None
    """Of a guest that is watched: work that it did not get done, in seconds at its pace before and after the run;
    below 0 for one that was faster meanwhile."""
    gap: float | None = None
    """Of a guest that is watched: the longest time in which it got nothing done."""
    first_touch: float | None = None
    """Until all RAM of the guest that was started from a file was read through its monitor, from when it ran on."""
    second_touch: float | None = None
    """The same once more: what is left of it without any page to be found."""
    wall: float | None = None
    """The whole process seen from outside, its start included; None where there was none."""
    phases: Mapping[str, float] | None = None
    """Where the time of what is ours went, under the names of its report."""

    def __post_init__(self) -> None:
        _require_figures({**(self.phases or {}), **{name: getattr(self, name) for name in _TIMES}})
        if self.lost is not None and not math.isfinite(self.lost):
            raise ValueError(f"lost is {self.lost!r}, expected a number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """How much there was, and how much was moved."""

    ram: int
    data: int | None = None
    """Of pages that are not zero."""
    written: int | None = None
    """Page bytes written, those bridged or written again included."""
    file: int | None = None
    """Length of the file."""
    allocated: int | None = None
    """What the file takes on its file system."""
    guests: int | None = None
    """Memory of all QEMUs that were started from the file, when they run; what several share counts once (Pss)."""

    def __post_init__(self) -> None:
        _require_figures({each.name: getattr(self, each.name) for each in fields(self)})


_TIMES = ("total", "last_write", "pause", "gap", "first_touch", "second_touch", "wall")


def _require_figures(found: Mapping[str, float | None]) -> None:
    """Refuse what nobody can reckon with.

    Raises:
        ValueError: a number is negative, infinite or none.
    """
    for name, value in found.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}, expected a number from 0 on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Seconds between looks that saw a guest get something done; there are about a thousand looks a second."""

    p50: float
    p90: float
    p99: float
    longest: float
    bins: tuple[int, ...] = ()
    """How many were how long (core/latency.py); none in results that are older than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was seen of a guest that is watched, besides its work; times are seconds since that began to be counted."""

    run: tuple[float, float]
    """From when to when all of the run took."""
    save: tuple[float, float] | None
    """The part of it that ``seconds.total`` is about; None where the way does not tell."""
    pause: tuple[float, float] | None
    """When the guest stood still; None where the way does not tell."""
    gaps: Gaps
    """In the run."""
    quiet: Gaps
    """Before it and after it."""
    qemu_cpu_seconds: float
    """Processor time that the guest's QEMU took in the run, the guest's own work included."""
    our_cpu_seconds: float
    """Processor time of processes that were started for the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run that counts."""

    number: int
    """The round it was part of, from 0."""
    seconds: Seconds
    bytes: Bytes
    verified: str
    """One of VERIFIED."""
    report: Mapping[str, Any] | None = None
    """Our own report of the save, without facts about the host."""
    growth: tuple[tuple[int, int], ...] | None = None
    """Of a guest that goes on dirtying: (rounds done, bytes that the file takes by then)."""
    sequential: tuple[tuple[int, int], ...] | None = None
    """Computed, next to ``growth``: (rounds done, bytes that a stream which appends every page would have by then)."""

    work: tuple[int, ...] | None = None
    """Of a guest that is watched: pages that it wrote in each 10 ms, from a second before the run on."""
    watch: Watch | None = None
    """Of a guest that is watched; None in results that are older than this."""
    running: tuple[float, ...] | None = None
    """Of guests that our command started from the file: when the first one ran, the second and so on, seconds from the
    start of the first QEMU on; None in results that are older than this."""

    def __post_init__(self) -> None:
        if self.verified not in VERIFIED:
            raise ValueError(f"verified is {self.verified!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrumented:
    """A run apart from the samples, which was watched."""

    private_bytes_peak: int
    """Anonymous memory of coordinator and workers (RssAnon), the highest sum seen; pages that they share since a fork
    count once for each."""
    timeline: tuple[tuple[int, float, float, int, int], ...]
    """Each shard: worker, start and end in seconds since the save began, offset of its first page in the file, page
    bytes written."""
    write_bins: tuple[int, ...] = ()
    """How many writes took how long (core/latency.py); none in results that are older than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """A case and its samples."""

    id: str
    parameters: Mapping[str, Any]
    """All that were in effect, defaults included."""
    samples: tuple[Sample, ...] = ()
    """Ascending by number."""
    instrumented: Instrumented | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioFacts:
    """What was asked."""

    name: str
    question: str
    repeats: int
    warm_up: int
    seed: int
    text: str
    """The TOML as it was read."""
    until: str | None = None
    """How precise cases were to be; see stopping.py."""
    budget: str | None = None
    """How long rounds might take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingWay:
    """Cases that could not be run here."""

    way: str
    why: str
    cases: tuple[str, ...]
    """Their ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """A time in which runs were made, one after the other; a run set that was resumed has several."""

    started: str
    """ISO 8601, with offset."""
    conditions: tuple[Finding, ...] = ()
    """What was found before it began; none where nobody looked."""
    stolen: float | None = None
    """Share of processor time that the host of this host gave to others meanwhile, 0 to 1; None if it was killed."""
    throttled_seconds: float | None = None
    """How long control groups waited for their quota meanwhile; None if it was killed, or that is not told."""
    swapped_pages: int | None = None
    """Pages that went to swap or came from there meanwhile; None if it was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSet:
    """Everything that one set of runs found."""

    scenario: ScenarioFacts
    started: str
    """ISO 8601, with offset."""
    finished: str | None = None
    """None while samples are missing."""
    commit: str | None = None
    """Of the checkout that ran, with ``+`` after it when files differed from it; None for an installed copy."""
    versions: Mapping[str, str | None]
    host: Mapping[str, Any]
    order: tuple[str, ...]
    """Case ids in the order in which they were run, warm-up included, instrumented runs not."""
    missing: tuple[MissingWay, ...]
    cases: tuple[CaseResult, ...]
    sittings: tuple[Sitting, ...] = ()

    def case(self, case_id: str) -> CaseResult:
        """The case of that id.

        Raises:
            KeyError: there is none.
        """
        for each in self.cases:
            if each.id == case_id:
                return each
        raise KeyError(case_id)

    def with_case(self, case: CaseResult) -> Self:
        """The same, with one case replaced."""
        return replace(self, cases=tuple(case if each.id == case.id else each for each in self.cases))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return stamped("results", asdict(self))

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """What ``to_json`` made ``data`` of.

        Raises:
            FormatError: it did not.
        """
        if not isinstance(data, Mapping):
            raise FormatError("not a set of runs: it is no object")
        schema = data.get("schema")
        if isinstance(schema, bool) or schema != _FIRST_SCHEMA:
            check(data, "results")
        try:
            return from_plain(cls, data)
        except ValueError as error:
            raise FormatError(f"not a set of runs: {error}") from error


def load(path: str) -> RunSet:
    """Read a run set.

    Raises:
        RequestError: there is no such file.
        HostError: it cannot be read.
        FormatError: it is not a run set.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return RunSet.from_json(json.load(file))
    except FileNotFoundError as error:
        raise RequestError(f"{path!r} does not exist") from error
    except OSError as error:
        raise HostError.from_os(f"cannot read {path!r}", error) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path!r} is not JSON: it is not even text") from error
    except ValueError as error:
        raise FormatError(f"{path!r} is not JSON: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{path!r} is no set of runs: it is nested too deeply") from error
    except FormatError as error:
        raise error.in_file(path) from error


def store(run_set: RunSet, path: str) -> None:
    """Write a run set; at every instant there is the old file or the new one.

    Raises:
        HostError: it cannot be written.
    """
    part = path + _PART
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(run_set.to_json(), file, indent=1)
            file.write("\n")
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise HostError.from_os(f"cannot write {path!r}", error) from error
