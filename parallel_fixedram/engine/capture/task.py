"""Task: everything about one save that is decided before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_fixedram.core.choice import Choice
from parallel_fixedram.core.protocols import AddressSpace, DirtySource, GuestBlock
from parallel_fixedram.core.save_options import SaveOptions
from parallel_fixedram.engine.pages.changes import Hashes
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.staging import SLOTS, Staging
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.files.channel import FileChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a capture is made from."""

    guest_blocks: Sequence[GuestBlock]
    """Where pages come from."""
    layout: FileLayout
    """Where they go; its blocks are in the same order."""
    ledger: Ledger
    guest_waits: bool
    """Whether a guest runs, and will stand still for the last pages."""
    options: SaveOptions
    choice: Choice
    buffered: FileChannel
    """The file, through the page cache."""
    direct: FileChannel | None
    """The file, bypassing the page cache; None if it cannot be opened like that."""
    dirty: DirtySource | None
    """The dirty log; None unless the capture needs it."""
    address_space: AddressSpace | None
    """How writes are made to wait; None unless the capture needs that."""

    @property
    def blocks(self) -> Sequence[SavedBlock]:
        """The blocks with their places."""
        return self.layout.blocks

    @property
    def channel(self) -> FileChannel:
        """The file, opened in the way that was chosen for pages."""
        return self.direct if self.choice.direct and self.direct else self.buffered

    def writer(self, *, may_change: bool = False, hashes: Hashes | None = None) -> PageWriter:
        """A writer as chosen; it writes from copies if the page cache is bypassed or RAM may change."""
        return PageWriter(
            self.guest_blocks,
            self.blocks,
            self.ledger,
            self.channel,
            max_gap_pages=self.choice.gap_pages,
            staging=self.staging() if may_change or self.choice.direct else None,
            may_change=may_change,
            hashes=hashes,
        )

    def staging(self) -> Staging:
        """Room for copies on their way to the file; one window is enough if writes are done when a call returns."""
        slots = SLOTS if self.choice.direct else 1
        page_size = max(saved.block.page_size for saved in self.blocks)
        return Staging(self.channel.another, page_size, window_pages=self.choice.window_pages, slots=slots)
