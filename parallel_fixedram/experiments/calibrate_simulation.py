"""Fit the simulation to what one channel did, predict more channels, and check the prediction against the measurement.

::

    roofline: fio, best rate            -> byte_seconds of the device   (direct)
              fio, one process          -> call_seconds (direct), copy_byte_seconds under the file lock (buffered)
              scan, one process         -> least that a worker takes to look at a byte
    one channel of ours, less all this  -> what a worker takes for a byte: scan and digests
    two channels and more               -> nothing: they are what is predicted

Nothing that the roofline does not tell is guessed: such a series is listed with the reason why it is not simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.shards import WINDOW_PAGES, WINDOW_PAGES_DIRECT
from parallel_fixedram.experiments.fit import Fit
from parallel_fixedram.experiments.metrics import Metric, seconds
from parallel_fixedram.experiments.results import CaseResult, RunSet
from parallel_fixedram.experiments.shard_calls import PlannedWrites, first_pages, planned, random_pages
from parallel_fixedram.experiments.simulate import Device, Host, simulate
from parallel_fixedram.experiments.statistics import median
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload

AUTO_GAP_PAGES = {True: 16, False: 0}
"""What is assumed of gap_pages=auto, direct and buffered, where no report says what was chosen."""
WINDOW_PAGES_OF = {True: WINDOW_PAGES_DIRECT, False: WINDOW_PAGES}
"""The longest write, direct and buffered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPoint:
    """One number of channels."""

    channels: int
    measured: float
    """Median, seconds."""
    simulated: float
    fitted: bool
    """Whether the parameters were fitted to this very point, so that it proves nothing."""
    bottleneck: str

    @property
    def error(self) -> float:
        """Simulated by measured, less 1."""
        return self.simulated / self.measured - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A series of cases that differ in their channels, measured and simulated."""

    series: str
    """What the cases have in common."""
    question: str
    direct: bool
    metric: Metric
    bytes: int
    """Page bytes of the writes that were planned."""
    fixed_seconds: float
    """Before the first page, of one channel; added to what was simulated."""
    device: Device
    host: Host
    points: tuple[SimulatedPoint, ...]
    """Ascending by channels."""
    notes: tuple[str, ...]
    """What was assumed or did not fit."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        points = [{**asdict(point), "error": point.error} for point in self.points]
        return {**asdict(self), "metric": str(self.metric), "points": points, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSimulated:
    """A series that could not be simulated."""

    series: str
    why: str


def calibrated(run_set: RunSet) -> tuple[list[Calibration], list[NotSimulated]]:
    """Fit and predict every series of ``run_set`` that has one channel and more."""
    done, left = [], []
    for name, cases in _series(run_set.cases):
        try:
            done.append(_calibrate(run_set, name, cases))
        except RequestError as error:
            left.append(NotSimulated(series=name, why=error.message))
    return done, left


def _series(cases: Iterable[CaseResult]) -> Iterator[tuple[str, list[CaseResult]]]:
    found: dict[str, list[CaseResult]] = {}
    for case in cases:
        channels = case.parameters.get("channels")
        if case.parameters.get("way") == "ours" and case.samples and isinstance(channels, int):
            name = " ".join(word for word in case.id.split() if not word.startswith("channels="))
            found.setdefault(name, []).append(case)
    for name, each in found.items():
        if len(each) > 1:
            yield name, sorted(each, key=lambda case: int(case.parameters["channels"]))


def _calibrate(run_set: RunSet, name: str, cases: Sequence[CaseResult]) -> Calibration:
    one = cases[0]
    if one.parameters["channels"] != 1:
        raise RequestError("no case with one channel to fit")
    metric = _metric(cases)
    direct = _is_direct(cases)
    pages = _Pages(one, direct)
    notes = list(pages.notes)
    fit = Fit(run_set, one, metric, direct, notes)
    device, host, fixed = fit.parameters(pages.workload(one))
    points = []
    for case in cases:
        channels = int(case.parameters["channels"])
        found = simulate(pages.workload(case), channels=channels, device=device, host=host)
        points.append(
            SimulatedPoint(
                channels=channels,
                measured=median(seconds(case, metric)),
                simulated=fixed + found.seconds,
                fitted=channels == 1,
                bottleneck=found.bottleneck,
            )
        )
    return Calibration(
        series=name,
        question=run_set.scenario.question,
        direct=direct,
        metric=metric,
        bytes=pages.workload(one).bytes,
        fixed_seconds=fixed,
        device=device,
        host=host,
        points=tuple(points),
        notes=tuple(notes),
    )


def _metric(cases: Sequence[CaseResult]) -> Metric:
    if all(len(seconds(case, Metric.LAST_WRITE)) == len(case.samples) for case in cases):
        return Metric.LAST_WRITE
    raise RequestError("not every sample tells when its last page was written, and what comes after is not simulated")


def _is_direct(cases: Sequence[CaseResult]) -> bool:
    """Whether the pages bypassed the page cache: as asked, or as the reports say."""
    asked = cases[0].parameters.get("direct_io")
    if asked in ("on", "off"):
        return bool(asked == "on")
    told = {(sample.report or {}).get("direct_io") for case in cases for sample in case.samples}
    if told in ({True}, {False}):
        return told == {True}
    raise RequestError("the samples do not agree whether pages bypassed the page cache")


class _Pages:
    """Which pages the cases write."""

    def __init__(self, one: CaseResult, direct: bool) -> None:
        parameters = one.parameters
        if "guest" not in parameters:
            raise RequestError("which pages of a QEMU guest hold data is not known")
        if parameters.get("rounds") is not None:
            raise RequestError("a guest that goes on writing is not simulated")
        spec = GuestSpec.parse(str(parameters["guest"]))
        if not spec.written_pages:
            raise RequestError("a guest without data writes nothing")
        self._direct = direct
        self.notes = []
        if _chosen(one, "gap_pages") is None:
            self.notes.append(f"gap_pages=auto taken as {AUTO_GAP_PAGES[direct]}")
        scattered = spec.workload is Workload.RANDOM
        choose = random_pages(spec.pages, spec.written_pages, spec.seed) if scattered else None
        self._data = choose or first_pages(spec.pages, spec.written_pages)
        self._dirty = self._data
        if dirty := parameters.get("dirty"):
            if scattered:
                raise RequestError("a second round over scattered data is not simulated")
            self._dirty = random_pages(spec.pages, max(round(spec.written_pages * float(dirty)), 1), spec.seed)
        if scattered or dirty:
            self.notes.append("which pages were written is drawn again, as many at random as there were")

    def workload(self, case: CaseResult) -> PlannedWrites:
        """The writes of a case of the series."""
        gap = _chosen(case, "gap_pages")
        return planned(
            self._dirty,
            self._data,
            channels=int(case.parameters["channels"]),
            max_gap_pages=AUTO_GAP_PAGES[self._direct] if gap is None else gap,
            shard_pages=_chosen(case, "shard_pages"),
            window_pages=WINDOW_PAGES_OF[self._direct],
        )


def _chosen(case: CaseResult, name: str) -> int | None:
    """What a save was told or chose by itself, as its report says; None where nothing says it."""
    asked = case.parameters.get(name)
    if isinstance(asked, int):
        return asked
    for sample in case.samples:
        choice = (sample.report or {}).get("choice")
        if isinstance(choice, Mapping) and isinstance(choice.get(name), int):
            return int(choice[name])
    return None
