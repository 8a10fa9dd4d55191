"""Progress: a line a phase on stderr, on a terminal only, for what takes over a second.

A phase whose end nobody knows, such as a sync, is a bar that moves and the time since it began; it may begin and block
before the first second is over, so a timer shows it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from parallel_fixedram.cli.output import MANNER
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRESS_AFTER_SECONDS = 1.0
"""What takes less time than this shows nothing."""

_MOST_COLUMNS, _LEAST_COLUMNS = 40, 5
"""Of the bar itself."""
_BESIDES_COLUMNS = 48
"""Columns of all but the bar."""


class ProgressBar(Observer):
    """Context manager and progress function."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty() and not MANNER.quiet
        self._after = time.monotonic() + PROGRESS_AFTER_SECONDS
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown_phase = ""
        self._now: tuple[str, int, int] = ("", 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._progress is not None:
            with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
                self._progress.stop()

    def phase(self, name: str, total: int = 0) -> None:
        """Begin a line (Observer.phase)."""
        self(name, 0, total)

    def advanced(self, size: int) -> None:
        """Show that more is done (Observer.advanced)."""
        phase, done, total = self._now
        self(phase, done + size, total)

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes of a phase are through; a total of 0 is one that nobody knows."""
        if not self._wanted:
            return
        with self._lock:
            self._now = (phase, done, total)
            wait = self._after - time.monotonic()
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
            self._wanted = False


def _bar() -> Progress:
    from datetime import timedelta

    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class BytesColumn(ProgressColumn):
        """Bytes done and in all, and a second, in binary units; nothing where nobody knows how many there are."""

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
        console=Console(stderr=True),
        transient=True,
    )
