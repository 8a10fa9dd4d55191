"""The progress bar: on stderr, on a terminal only, for what takes over a second."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Self

from parallel_fixedram.cli.output import MANNER
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRESS_AFTER_SECONDS = 1.0
"""What takes less time than this shows no progress bar."""


class ProgressBar:
    """Context manager and progress function: a bar on stderr, on a terminal only, for what takes over a second."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty() and not MANNER.quiet
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
                self._progress.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes of a phase are through."""
        if not self._wanted or time.monotonic() - self._started < PROGRESS_AFTER_SECONDS:
            return
        try:
            self._show(phase, done, total)
        except OSError:
            self._wanted = False

    def _show(self, phase: str, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = _bar()
            self._progress.start()
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._phase = self._progress.add_task(phase, total=total), phase
        self._progress.update(self._task, completed=done, total=total)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Bytes a second in binary units, as the bytes before them."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("?" if speed is None else f"{format_size(int(speed))}/s", style="progress.data.speed")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        RateColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
