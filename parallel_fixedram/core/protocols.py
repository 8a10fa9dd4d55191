"""The protocols that carry everything.

::

    Machine ---- guest_blocks() --> RAMBlock + PageSource --pages--> worker --write--> Channel --> file
       |                                                                ^
       +-- pause(), resume(), device_state()        |
       +-- dirty_source() --> DirtySource --sync--> dirty bitmap
       +-- address_space() --> AddressSpace: writes that wait
       +-- overlays() --> DiskOverlays: what its disks go on with

A new kind of guest is a new Machine, a new way to reach its memory a new PageSource, a new way to know what changed a
new DirtySource, a new kind of file a new Channel. None of them touches the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import Bits, PageBitmap, Runs
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.latency import Bins
from parallel_fixedram.core.ramblock import PageRange, RAMBlock

Pages = NDArray[np.uint64]
"""Pages as words, shape (pages, page_size / 8): the form in which a page is tested for zero fastest."""


class PageSource(Protocol):
    """Where the pages of one RAMBlock are read from."""

    tells_holes: bool
    """Whether ``data_ranges`` leaves out what was never touched; otherwise everything counts as data."""
    views_stay_valid: bool
    """Whether what ``pages`` gave stays valid after the next call."""

    def open(self) -> None:
        """Prepare this process for ``pages``; called once in every process that reads, after the fork.

        Raises:
            HostError: the memory cannot be reached from this process.
        """

    def pages(self, first: int, count: int, wanted: Bits | None = None) -> Pages:
        """A read-only, page-aligned view of the pages, shape (count, page_size / 8), valid until the next call.

        Reading pages outside ``data_ranges`` gives zeros but may allocate guest memory: callers do not.

        Args:
            first: first page.
            count: number of pages.
            wanted: 1 for every page that will be looked at, the others may hold anything; None for all.
        """

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        """The parts of ``within`` that may hold something else than zeros, ascending and disjoint.

        Costs no guest memory and may be called in any process, before ``open`` too.
        """

    def newly_touched(self, data: PageBitmap) -> list[PageRange]:
        """Pages outside ``data`` that may hold something else than zeros by now, ascending and disjoint.

        Called while the guest is stopped, so it must be quick: pages of ``data`` may be among them where that helps.

        Args:
            data: what ``data_ranges`` of this object found when it was last asked for the whole block, and everything
                found since.

        Raises:
            HostError: the memory can no longer be reached.
        """

    def close(self) -> None:
        """Give back what ``open`` took and the descriptors behind it; more than once does no harm."""


class DirtySource(Protocol):
    """Knows which pages were written since it was last asked."""

    def sync(self, into: Sequence[PageBitmap]) -> int:
        """Add the pages written since the last call to ``into`` and forget them.

        Args:
            into: one bitmap a block, in the machine's order.

        Returns:
            How many bits went from 0 to 1.
        """


class Channel(Protocol):
    """A seekable place for bytes; each call carries an absolute offset, so channels need not know of each other."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` (contiguous bytes) at ``offset``.

        Raises:
            HostError: with the errno of the call that failed.
        """

    def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
        """Begin to write runs of pages to their places; ``settle`` says when they are written.

        Args:
            offset: place of ``pages[0]``, bytes.
            pages: where they come from; must stay as it is until ``settle`` where the guest stands still.
            runs: which of them, shape (runs, 2): first and length of each, ascending.
            readable: 1 for every page that may be read, shape (pages,); zeros are written for the others.

        Raises:
            HostError: with the errno of a write that failed, begun now or earlier.
        """

    def settle(self) -> None:
        """Return when everything that ``write_runs`` began is written.

        Raises:
            HostError: with the errno of a write that failed.
        """

    def write_bins(self) -> Bins:
        """How many writes took how long, of those that are done since this was asked last; none where nobody counts."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of ``into`` from ``offset``.

        Raises:
            FormatError: the file ends before.
            HostError: with the errno of the call that failed.
        """

    def punch(self, offset: int, length: int) -> None:
        """Make ``length`` bytes at ``offset`` read as zeros, giving their space back where that is possible."""

    def sync(self) -> None:
        """Return when everything written so far is on stable storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBlock:
    """One RAMBlock of a machine and how its pages are reached."""

    block: RAMBlock
    source: PageSource
    main: bool = True
    """Whether it is main memory, which a clone maps out of the file; other blocks (firmware, video RAM) are loaded."""
    keeps_zero_pages: bool = False
    """Whether zero pages have to be in the file too, because whoever loads it has put something else there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSpace:
    """The process that a machine's RAM belongs to, where its writes can be made to wait (userfaultfd)."""

    watch: Callable[[], tuple[int, Sequence[int]]]
    """Gives the descriptor of a full userfaultfd of it, not set up yet, which is the caller's to close, and where each
    of ``guest_blocks`` starts in it; HostError where that is refused, MachineError where the process has ended."""
    has_answered: Callable[[], object]
    """Returns when what the process was about to do to its memory is done; MachineError where it has ended."""
    unproven: str = ""
    """Why this is done only if the user asks for it by name, as the end of a sentence; empty if it needs no asking."""


class DiskOverlays(Protocol):
    """Files that the disks of a machine write to from one instant on, so that their images stay unchanged.

    A context manager: overlays that are not in use when it is left are removed.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def prepare(self) -> Sequence[str]:
        """Make overlays for all disks, unnoticed by the machine; those that were made before and are unused stay.

        Returns:
            What the user should know of the disks: a sentence each.

        Raises:
            MachineError: a disk cannot have one; says which and why.
            HostError: the files cannot be made.
        """

    def freeze(self) -> None:
        """Move all disks to their overlays at once, or none of them; called while the machine is paused.

        Raises:
            MachineError: that was refused, or it is not known what happened.
        """

    def frozen(self, *, durable: bool) -> Sequence[tuple[Disk, str]]:
        """The disks as they were when ``freeze`` was called last, and for each the overlay that it goes on with.

        Called when the machine may run again.

        Args:
            durable: have their images on stable storage.

        Raises:
            MachineChanged: they are no longer those of the machine.
            HostError: an image cannot be read or synced.
        """


class Machine(Protocol):
    """Something with RAM that can be made to stand still; knows nothing about files."""

    @property
    def name(self) -> str:
        """Machine type as it stands in the file's configuration section, such as ``pc-q35-10.0``."""

    @property
    def target(self) -> str:
        """Architecture of the guest by QEMU's name, such as ``aarch64``; empty where there are no processors."""

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """Every RAMBlock that has to be saved, in the order in which the file shall list them."""

    def holds(self, path: str) -> bool:
        """Whether ``path`` is what its memory lies in, and must not be written.

        Raises:
            HostError: that cannot be found out.
        """

    def is_running(self) -> bool:
        """Whether it runs now, and so will have to wait while its last pages are saved.

        Raises:
            MachineError: it is gone.
        """

    def get_ready(self) -> None:
        """Do now what ``pause`` would otherwise have to wait for; more than once does no harm.

        Raises:
            MachineError: it cannot be stopped.
        """

    def sync_disks(self) -> Sequence[str]:
        """Write to stable storage now what the machine would otherwise write, and we would wait for, at its stop.

        Called after ``get_ready``, shortly before ``pause``; takes as long as the disks take.

        Returns:
            What could not be synced, and why: a sentence for each.

        Raises:
            MachineError: the machine is gone.
        """

    def pause(self) -> bool:
        """Return when no page changes any more.

        Returns:
            Whether it was running; a machine that stood still already stays as it is.

        Raises:
            MachineError: it cannot be stopped.
        """

    def resume(self) -> str | None:
        """Undo what ``pause`` did: a machine that stood still before stays still. More than once does no harm.

        What somebody else did to it since ``pause`` stays as it is: who stopped it may let it go on.

        Returns:
            What somebody did since ``pause`` that makes everything read since then useless, as a sentence; None if
            what was read is the machine at one instant.

        Raises:
            MachineError: it does not go on, or is no longer what was to be saved.
        """

    def look_again(self) -> bool:
        """Find out once more what the machine is made of; also for ``guest_blocks`` from then on.

        Returns:
            Whether it is something else than before: blocks or devices came, went, or moved.

        Raises:
            MachineError: it cannot be saved as it is now.
        """

    def device_state(self) -> bytes:
        """Device sections as they stand in a migration stream, without the end mark; empty when there are none.

        Called while the machine is paused.
        """

    def dirty_source(self) -> DirtySource | None:
        """What tells which pages were written; None where nobody keeps track."""

    def address_space(self) -> AddressSpace:
        """How its writes can be made to wait; nothing is done to it yet.

        Raises:
            MachineError: they cannot, because of what the machine is made of.
            HostError: they cannot, for lack of a right or of kernel support.
        """

    def disks(self) -> Sequence[str]:
        """Names of the disks that it alone can write to: their contents go on changing when RAM has been saved.

        Raises:
            MachineError: the machine is gone.
        """

    def overlays(self, folder: str | None) -> DiskOverlays:
        """Overlays for ``disks``; nothing is made yet.

        Args:
            folder: where they will be made; None for beside each image.
        """

    def definition(self) -> bytes:
        """The domain's XML, as libvirt puts it into a saved image; empty where libvirt does not know the machine.

        Raises:
            MachineError: the machine is gone.
        """

    def saved(self) -> None:
        """The file of its RAM has its name: end the machine, if it was opened to be ended then.

        Raises:
            MachineError: it cannot be ended, and goes on.
        """

    def close(self) -> None:
        """Let go of the machine; it lives on as it is. More than once does no harm."""
