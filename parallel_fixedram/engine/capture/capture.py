"""Capture: the interface of all ways to save an instant, and when its methods are called.

::

    entered    only the machine runs yet; workers are forked next
    before     the machine runs
    rehearse   it runs; once before every try to stop it
    stopped    it stands still: nothing that can be done elsewhere
    after      it runs again
    let_go     the file is about to get its name
    left       in any case

When ``after`` is done, the file has every page as it was in ``stopped``.
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
        reserves: whether space is reserved for all pages that may contain data, so that a full file system is noticed
            early.
    """

    reserves = True

    def __enter__(self) -> Self:
        """Make what workers will inherit, and close what they must not inherit; they are forked next."""
        return self

    def __exit__(  # noqa: B027  # most have nothing to release
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release everything."""

    @abstractmethod
    def jobs(self) -> Sequence[Job]:
        """The jobs for the workers."""

    def before(self, run: Coordinator) -> None:  # noqa: B027
        """Do what can be done while the machine runs; called once."""

    @abstractmethod
    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        """Get ready for ``stopped``, immediately before it.

        Args:
            run: has workers write.
            torn: what somebody else did that spoiled the last ``stopped``, as a sentence; None if nothing did.
        """

    @abstractmethod
    def stopped(self, run: Coordinator) -> None:
        """Do what has to be done while the machine stands still."""

    def after(self, run: Coordinator) -> None:  # noqa: B027
        """Do the rest; the machine runs again."""

    def let_go(self) -> SnapshotReport | None:
        """Return when the machine is no longer affected; returns figures if it was."""
        return None


MakeCapture = Callable[[Task], Capture]
