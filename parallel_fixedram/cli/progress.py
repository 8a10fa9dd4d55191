"""Progress: how far a command is, on stderr, as its ``--progress`` says.

A bar is a line a phase on a terminal, for what takes over a second. A phase whose end nobody knows, such as a sync, is
a bar that moves and the time since it began; it may begin and block before the first second is over, so a timer shows
it. For programs there is one JSON object an event and line, whose schema is ``progress``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from parallel_fixedram.cli.output import MANNER, Manner
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from parallel_fixedram.core.reports.save import ShardTrace

PROGRESS_AFTER_SECONDS = 1.0
"""What takes less time than this has no bar."""

LINE_SECONDS = 0.1
"""Least time between two JSON objects that say how many bytes of a phase are done, but for its last one."""

_MOST_COLUMNS, _LEAST_COLUMNS = 40, 5
"""Of the bar itself."""
_BESIDES_COLUMNS = 48
"""Columns of all but the bar."""


class Shown(Observer):
    """Context manager and observer of one command; this one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing more comes."""


def shown(manner: Manner = MANNER) -> Shown:
    """What shows how far this command is.

    Args:
        manner: how it was told to talk.
    """
    how = manner.progress
    if how == "auto":
        how = "bar" if sys.stderr.isatty() and not manner.quiet else "none"
    kinds: dict[str, type[Shown]] = {"bar": ProgressBar, "json": ProgressLines, "none": Shown}
    return kinds[how]()


class ProgressLines(Shown):
    """One JSON object an event and line on stderr.

    Args:
        clock: tells the time, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done = self._total = self._told = 0
        self._next = 0.0

    def __exit__(self, *exception: object) -> None:
        self._tell_done()

    def phase(self, name: str, total: int = 0) -> None:
        """Say that a phase begins (Observer.phase)."""
        self._tell_done()
        self._done, self._total, self._told = 0, total, 0
        tell("phase", {"name": name, "total": total})
        self._next = self._clock() + LINE_SECONDS

    def advanced(self, size: int) -> None:
        """Say how much of the phase is done, if that was not said just before (Observer.advanced)."""
        self._done += size
        if self._done == self._total or self._clock() >= self._next:
            self._tell_done()
            self._next = self._clock() + LINE_SECONDS

    def shard(self, trace: ShardTrace) -> None:
        """Say who wrote what when (Observer.shard)."""
        tell("shard", asdict(trace))

    def note(self, text: str) -> None:
        """Say it (Observer.note)."""
        tell("note", {"text": text})

    def _tell_done(self) -> None:
        if self._done != self._told:
            self._told = self._done
            tell("advanced", {"done": self._done, "total": self._total})


def tell(event: str, what: dict[str, Any]) -> None:
    """Print an event as a JSON object in a line on stderr; one that is gone is no error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps(stamped("progress", {"event": event, **what})) + "\n")
        sys.stderr.flush()


class ProgressBar(Shown):
    """A line a phase on a terminal.

    Args:
        clock: tells the time, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._gone = False
        self._clock = clock
        self._after = clock() + PROGRESS_AFTER_SECONDS
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown_phase = ""
        self._now: tuple[str, int, int] = ("", 0, 0)

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._progress is not None:
            with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
                self._progress.stop()

    def phase(self, name: str, total: int = 0) -> None:
        """Begin a line, or begin this phase's line again (Observer.phase); a total of 0 means that it is not known."""
        self._is_at(name, 0, total)

    def advanced(self, size: int) -> None:
        """Show that more is done (Observer.advanced)."""
        phase, done, total = self._now
        self._is_at(phase, done + size, total)

    def _is_at(self, phase: str, done: int, total: int) -> None:
        if self._gone:
            return
        with self._lock:
            self._now = (phase, done, total)
            wait = self._after - self._clock()
            if self._progress is not None or wait <= 0:
                self._show()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self._late)
                self._timer.daemon = True
                self._timer.start()

    def _late(self) -> None:
        with self._lock:
            self._show()

    def _show(self) -> None:
        phase, done, total = self._now
        try:
            if self._progress is None:
                self._progress = _bar()
                self._progress.start()
            if phase != self._shown_phase or self._task is None:
                if self._task is not None:
                    self._progress.stop_task(self._task)  # its line stays
                    if self._progress.tasks[-1].total is None:
                        self._progress.update(self._task, total=0)  # a full bar, which moves no more
                self._task, self._shown_phase = self._progress.add_task(phase, total=total or None), phase
            self._progress.update(self._task, completed=done, total=total or None)
        except OSError:
            self._gone = True


def _bar() -> Progress:
    from datetime import timedelta

    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class BytesColumn(ProgressColumn):
        """Bytes done, in all, and per second, in binary units; nothing where the total is not known."""

        def render(self, task: Task) -> Text:
            if not task.total:
                return Text("")
            speed = task.finished_speed or task.speed
            rate = "" if speed is None else f", {format_size(int(speed))}/s"
            return Text(f"{format_size(int(task.completed))} of {format_size(int(task.total))}{rate}", no_wrap=True)

    class TimeColumn(ProgressColumn):
        """Time that is left, or that it took."""

        def render(self, task: Task) -> Text:
            over = task.total is None or task.stop_time is not None or task.finished
            seconds = task.elapsed if over else task.time_remaining
            return Text("-:--:--" if seconds is None else str(timedelta(seconds=int(seconds))), no_wrap=True)

    columns = shutil.get_terminal_size().columns
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(_LEAST_COLUMNS, min(_MOST_COLUMNS, columns - _BESIDES_COLUMNS))),
        BytesColumn(),
        TimeColumn(),
        console=Console(stderr=True, force_terminal=True),
        transient=True,
    )
