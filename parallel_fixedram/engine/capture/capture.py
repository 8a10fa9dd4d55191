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
from dataclasses import dataclass
from typing import Protocol

from parallel_fixedram.core.choice import Choice
from parallel_fixedram.core.protocols import DirtySource, GuestBlock
from parallel_fixedram.core.save_options import SaveOptions
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.staging import SLOTS, Staging
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.files.channel import FileChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a capture is made from."""

    guest_blocks: Sequence[GuestBlock]
    """Where pages come from."""
    blocks: Sequence[SavedBlock]
    """Where they go, in the same order."""
    ledger: Ledger
    choice: Choice
    options: SaveOptions
    buffered: FileChannel
    """The file, through the page cache."""
    direct: FileChannel | None
    """The file past it, where it could be opened so."""
    dirty: DirtySource | None
    """Says which pages were written, where anything does."""

    @property
    def channel(self) -> FileChannel:
        """The file, as the choice wants pages written."""
        return self.direct if self.choice.direct and self.direct else self.buffered

    def staging(self) -> Staging:
        """Room for copies on their way to the file; one window is enough for what is done when a call returns."""
        channel, slots = self.channel, SLOTS if self.choice.direct else 1
        page_size = max(saved.block.page_size for saved in self.blocks)
        return Staging(channel.another, page_size, window_pages=self.choice.window_pages, slots=slots)


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
