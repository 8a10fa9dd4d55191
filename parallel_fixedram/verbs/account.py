"""Account: a verb's phases and notes, for its observer and its report."""

from __future__ import annotations

import time
from collections.abc import Iterable

from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.save import PhaseReport


class Account:
    """Consecutive phases, the first of which begins now, and notes.

    Args:
        observer: told about notes.
        notes: notes to begin with.

    Attributes:
        observer: as given.
        began: ``time.perf_counter()`` when the first phase began.
        phases: those that have ended.
        notes: a sentence each.
    """

    def __init__(self, observer: Observer, notes: Iterable[str]) -> None:
        self.observer = observer
        self.began = time.perf_counter()
        self.phases: list[PhaseReport] = []
        self.notes = list(notes)

    def note(self, text: str) -> None:
        """Add a note: a sentence that says what was not done as requested, or is done again."""
        self.notes.append(text)
        self.observer.note(text)

    def end(self, name: str) -> None:
        """End the current phase, which gets this name, and begin the next."""
        started = self.seconds
        seconds = time.perf_counter() - self.began - started
        self.phases.append(PhaseReport(name=name, started=started, seconds=seconds))

    def started(self, name: str) -> float:
        """When the last phase with this name began, in seconds since the beginning of the first."""
        return next(each.started for each in reversed(self.phases) if each.name == name)

    @property
    def seconds(self) -> float:
        """Seconds from the beginning to the end of the last phase that has ended."""
        return self.phases[-1].started + self.phases[-1].seconds if self.phases else 0.0
