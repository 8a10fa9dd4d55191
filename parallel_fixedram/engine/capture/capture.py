"""Capture: what every way to save an instant has to do, and what it is told.

::

    entered    nothing runs yet but the machine; workers are forked next
    before     the machine runs
    rehearse   it runs; once before every try to stop it
    stopped    it stands still: nothing that can be done elsewhere
    after      it runs again
    let_go     the file is about to get its name
    left       whatever happened

When ``after`` is done the file holds every page as it was in ``stopped``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from parallel_fixedram.core.reports.save import SnapshotReport
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.workers.worker import Job


class Capture(ABC):
    """One way to save an instant; a context manager.

    Attributes:
        reserves: whether space is reserved for all pages that may hold something, so that a full file system is noticed
            early.
    """

    reserves = True

    def __enter__(self) -> Self:
        """Get what workers are to inherit, and do what they must not inherit; they are forked next."""
        return self

    def __exit__(  # noqa: B027  # most have nothing to give back
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what there is."""

    @abstractmethod
    def jobs(self) -> Sequence[Job]:
        """What workers have to be able to do."""

    def before(self, run: Coordinator) -> None:  # noqa: B027
        """What can be done while the machine runs, once."""

    @abstractmethod
    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        """Get ready for ``stopped``, as close to it as possible.

        Args:
            run: has workers write.
            torn: what somebody else did that spoiled the last ``stopped``, as a sentence; None if nobody did.
        """

    @abstractmethod
    def stopped(self, run: Coordinator) -> None:
        """What has to be done while the machine stands still."""

    def after(self, run: Coordinator) -> None:  # noqa: B027
        """What is left; the machine runs again."""

    def let_go(self) -> SnapshotReport | None:
        """Return when the machine is no longer affected; with figures, if it was."""
        return None


MakeCapture = Callable[[Task], Capture]
