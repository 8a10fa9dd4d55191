"""How far runs are, as ``--progress`` says: on a terminal a bar, elsewhere a line for each guest and run.

Nothing is drawn while something runs.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Self

from parallel_fixedram.cli.output import MANNER, Manner, warn
from parallel_fixedram.cli.progress import tell

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class RunsProgress:
    """Context manager and progress function, on stderr.

    Args:
        name: what is being run.
        manner: how the command was told to talk.

    Attributes:
        begun: whether anything was.
    """

    def __init__(self, name: str, manner: Manner = MANNER) -> None:
        self.begun = False
        self._name = name
        self._how = manner.progress
        if self._how == "auto":
            self._how = "bar" if sys.stderr.isatty() and not manner.quiet else "lines"
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
                self._progress.stop()

    def __call__(self, done: int, total: int, left: float, what: str) -> None:
        """Show that ``done`` of ``total`` runs are through, about how many seconds are left, and what comes now."""
        self.begun = True
        if self._how == "lines":
            warn(f"{self._name}: {done} of {total} runs done, about {duration(left)} left: {what}")
        elif self._how == "json":
            tell("run", {"scenario": self._name, "done": done, "total": total, "left_seconds": left, "what": what})
        elif self._how == "bar":
            try:
                self._draw(done, total, left, what)
            except OSError:
                self._how = "lines"

    def _draw(self, done: int, total: int, left: float, what: str) -> None:
        if self._progress is None or self._task is None:
            self._progress = _bar()
            self._progress.start()
            self._task = self._progress.add_task(self._name, total=total, what="", left="")
        self._progress.update(self._task, completed=done, total=total, what=what, left=f"about {duration(left)} left")
        self._progress.refresh()


def duration(seconds: float) -> str:
    """About how long that is, in whole seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    # what is long is cut off, and takes nothing from the others
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn(
            "{task.fields[what]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=Console(stderr=True, force_terminal=True),
        transient=True,
        expand=True,
        auto_refresh=False,  # a thread that draws would be part of what is measured
    )
