"""Capture: what every way to save an instant has to do, and what it is told.

::

    before     the machine runs
    rehearse   it runs; once before every try to stop it
    stopped    it stands still: nothing that can be done elsewhere
    after      it runs again

When ``after`` is done the file holds every page as it was in ``stopped``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.workers.worker import Job


class Capture(Protocol):
    """One way to save an instant."""

    reserves: bool
    """Whether space is reserved for all pages that may hold something, so that a full file system is noticed early."""

    def jobs(self) -> Sequence[Job]:
        """What workers have to be able to do."""

    def before(self, run: Coordinator) -> None:
        """What can be done while the machine runs, once."""

    def rehearse(self, run: Coordinator, *, torn: bool) -> None:
        """Get ready for ``stopped``, as close to it as possible.

        Args:
            run: has workers write.
            torn: whether ``stopped`` was done, and somebody else's act made it worthless.
        """

    def stopped(self, run: Coordinator) -> None:
        """What has to be done while the machine stands still."""

    def after(self, run: Coordinator) -> None:
        """What is left; the machine runs again."""


MakeCapture = Callable[[Task], Capture]
