"""Account: what a verb tells while it goes on, and has to report in the end."""

from __future__ import annotations

import time
from collections.abc import Iterable

from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.save import PhaseReport


class Account:
    """Phases that follow each other, the first of which begins now, and notes.

    Args:
        observer: hears of notes.
        notes: what is to be said in any case.

    Attributes:
        observer: the same.
        began: ``time.perf_counter()`` when the first phase began.
        phases: those that are over.
        notes: a sentence each.
    """

    def __init__(self, observer: Observer, notes: Iterable[str]) -> None:
        self.observer = observer
        self.began = time.perf_counter()
        self.phases: list[PhaseReport] = []
        self.notes = list(notes)

    def note(self, text: str) -> None:
        """Something was done otherwise than asked, or is done again: a sentence."""
        self.notes.append(text)
        self.observer.note(text)

    def end(self, name: str) -> None:
        """A phase of this name ends, and the next one begins."""
        started = self.seconds
        seconds = time.perf_counter() - self.began - started
        self.phases.append(PhaseReport(name=name, started=started, seconds=seconds))

    def started(self, name: str) -> float:
        """When the last phase of that name began, seconds since the first one did."""
        return next(each.started for each in reversed(self.phases) if each.name == name)

    @property
    def seconds(self) -> float:
        """Until the end of the last phase that is over."""
        return self.phases[-1].started + self.phases[-1].seconds if self.phases else 0.0
