"""Observer: who wants to know how far something is, and who did what.

An observer of one's own overrides what it wants to hear::

    class Percent(Observer):
        def phase(self, name, total=0):
            self.done, self.total = 0, total

        def advanced(self, size):
            self.done += size
            print(f"{self.done / self.total:.0%}")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.save import ShardTrace


class Observer:
    """Hears nothing unless a method is overridden. What a method raises ends what it observes."""

    def phase(self, name: str, total: int = 0) -> None:
        """A phase begins.

        Args:
            name: such as ``write``.
            total: bytes it will go through; 0 where nobody knows, such as for a sync.
        """

    def advanced(self, size: int) -> None:
        """So many bytes more of the phase are done."""

    def shard(self, trace: ShardTrace) -> None:
        """A worker has done a shard of a save: who wrote which part of the file when."""

    def note(self, text: str) -> None:
        """Something was done otherwise than asked, or begins again: a sentence."""


SILENT = Observer()
"""Hears nothing."""
