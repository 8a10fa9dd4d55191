"""Phases: what a verb does one after another, and how long each took."""

from __future__ import annotations

import time

from parallel_fixedram.core.reports.save import PhaseReport


class Phases:
    """A clock that starts now, with the first phase.

    Attributes:
        began: ``time.perf_counter()`` of then.
        done: the phases that are over.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.done: list[PhaseReport] = []

    def end(self, name: str) -> None:
        """A phase of this name ends, and the next one begins."""
        started = self.seconds
        self.done.append(PhaseReport(name=name, started=started, seconds=time.perf_counter() - self.began - started))

    def started(self, name: str) -> float:
        """When the last phase of that name began, seconds since the beginning."""
        return next(each.started for each in reversed(self.done) if each.name == name)

    @property
    def seconds(self) -> float:
        """From the beginning to the end of the last phase."""
        return self.done[-1].started + self.done[-1].seconds if self.done else 0.0
