"""When a case has enough samples: after some number of rounds, when its median is precise enough, or when time is up.

::

    until = "interval < 5 %"              after the scenario's repeats, go on until every case of the guest is that
    until = "interval of pause < 10 %"    precise, for ``MOST_ROUNDS`` times as many rounds at most
    budget = "10 min"                     no round begins that would end later; one is always made

An interval is that of the median, 95 % (``statistics.median_interval``), relative to the median. Looking again and
again and stopping when it is narrow makes it a little too narrow: good enough to stop by, but not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments.metrics import Metric, seconds
from parallel_fixedram.experiments.results import CaseResult
from parallel_fixedram.experiments.statistics import median, median_interval

MOST_ROUNDS = 10
"""Times the scenario's repeats: then even a case that is not precise gets no further rounds."""
_UNTIL = re.compile(r"interval(?: of (?P<metric>\w+))? ?< ?(?P<percent>\d+(?:\.\d+)?) ?%")
_BUDGET = re.compile(r"(?P<count>\d+(?:\.\d+)?) ?(?P<unit>s|min|h)")
_UNITS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """How precise a time is to be."""

    metric: Metric
    share: float
    """Most that the interval may be wide, as a share of the median."""

    def reached(self, case: CaseResult) -> bool:
        """Whether the case is that precise; one that does not tell this time always is."""
        if not case.samples:
            return False
        found = seconds(case, self.metric)
        if not found:
            return True
        interval = median_interval(found)
        return interval is not None and interval[1] - interval[0] < self.share * median(found)


def parse_until(value: Any) -> Until:
    """What a text such as ``interval of pause < 5 %`` says.

    Raises:
        RequestError: it is not one.
    """
    match = _UNTIL.fullmatch(value.strip()) if isinstance(value, str) else None
    metric = (match["metric"] or Metric.TOTAL) if match else ""
    if not match or metric not in list(Metric) or not 0 < float(match["percent"]) < 100:
        raise RequestError(f"expected 'interval < 5 %', or 'interval of TIME < 5 %' with one of {', '.join(Metric)}")
    return Until(metric=Metric(metric), share=float(match["percent"]) / 100)


def parse_budget(value: Any) -> float:
    """Seconds that a text such as ``10 min`` says.

    Raises:
        RequestError: it is not one.
    """
    match = _BUDGET.fullmatch(value.strip()) if isinstance(value, str) else None
    seconds_ = float(match["count"]) * _UNITS[match["unit"]] if match else 0.0
    if not seconds_:
        raise RequestError("expected a time such as '90 s', '10 min' or '2 h'")
    return seconds_


def wants_more(until: Until | None, repeats: int, cases: Iterable[CaseResult], number: int) -> bool:
    """Whether there is to be a round of that number, after all those that were planned.

    Args:
        until: how precise cases are to be; None: as precise as they are.
        repeats: rounds that were planned.
        cases: that take turns.
        number: of the round, from 0.
    """
    if until is None or number >= repeats * MOST_ROUNDS:
        return False
    return not all(until.reached(case) for case in cases)


@dataclass(slots=True)
class Budget:
    """Time for rounds.

    Args:
        left: seconds from now on; None: as long as it takes.
    """

    left: float | None
    _round: float = 0.0
    """What the last round took."""

    def spend(self, round_seconds: float) -> None:
        """A round is over."""
        self._round = round_seconds
        if self.left is not None:
            self.left -= round_seconds

    @property
    def lasts(self) -> bool:
        """Whether a round like the last one still fits."""
        return self.left is None or self.left >= self._round
