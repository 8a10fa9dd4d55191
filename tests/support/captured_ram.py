"""RAM of a process that gives its userfaultfd away, captured into memory that stands for a file.

::

    Ram: a Watched process whose memory is cut into blocks  --Capture: a Snapshot of it-->  MemoryChannel, checked
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol, Self

import numpy as np
import xxhash
from support.channels import MemoryChannel
from support.pictures import allocated_pages
from support.watched import PAGE, Watched, require_userfaultfd

from parallel_fixedram.core.protocols import Channel, GuestBlock, PageSource
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.shards import plan_shards
from parallel_fixedram.engine.capture.snapshot.groups import Groups
from parallel_fixedram.engine.capture.snapshot.messages import Figures
from parallel_fixedram.engine.capture.snapshot.pieces import USUAL, Pieces
from parallel_fixedram.engine.capture.snapshot.places import Origin, Target
from parallel_fixedram.engine.capture.snapshot.processes import Processes
from parallel_fixedram.engine.capture.snapshot.registration import register
from parallel_fixedram.engine.capture.snapshot.snapshot import Snapshot
from parallel_fixedram.engine.pages.ledger import Ledger, shared_words
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import pagemap
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.process_memory import ProcessSource
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd

_BETWEEN = 3
"""Pages between two blocks that belong to none."""

_control = np.frombuffer(mmap.mmap(-1, PAGE), np.uint64)
"""Shared with the process: whether it is to stop, and how many pages it has written."""


class Guest(Protocol):
    """Whose memory it is."""

    blocks: list[RAMBlock]
    addresses: list[int | None]
    sources: list[PageSource]

    @property
    def userfaultfd(self) -> Userfaultfd: ...

    def contents(self) -> list[bytes]: ...


class Ram:
    """A context manager around the process.

    Args:
        pages: of each block.
        shared: a memory file, or private memory.

    Attributes:
        watched: the process.
        blocks: what its memory is made of.
        addresses: where each starts in the process.
        sources: how each is read.
        fd: the memory file; -1 where there is none.
    """

    def __init__(self, *pages: int, shared: bool = True) -> None:
        starts = np.cumsum([0, *(count + _BETWEEN for count in pages)]).tolist()
        self._starts, self._size = starts[:-1], starts[-1] * PAGE
        self._shared, self.fd = shared, -1
        self.blocks = [RAMBlock(idstr=f"ram{n}", used_length=count * PAGE) for n, count in enumerate(pages)]

    def __enter__(self) -> Self:
        require_userfaultfd()
        with ExitStack() as stack:
            if self._shared:
                self.fd = os.memfd_create("ram", os.MFD_CLOEXEC)
                stack.callback(os.close, self.fd)
                os.ftruncate(self.fd, self._size)
            self.watched = stack.enter_context(Watched(self._make))
            self.addresses: list[int | None] = [self.watched.page(start) for start in self._starts]
            self.sources = [self._source(number) for number in range(len(self.blocks))]
            for source in self.sources:
                stack.callback(source.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make(self) -> mmap.mmap:
        return mmap.mmap(self.fd, self._size, mmap.MAP_SHARED if self.fd >= 0 else mmap.MAP_PRIVATE)

    def _source(self, number: int) -> PageSource:
        length, start = self.blocks[number].used_length, self._starts[number] * PAGE
        if self.fd >= 0:
            return MappedSource(self.fd, offset=start, length=length)
        return ProcessSource(self.watched.pid, self.addresses[number], length)

    @property
    def userfaultfd(self) -> Userfaultfd:
        """Of the process, enabled."""
        return self.watched.uffd

    def fill(self, pages: Sequence[int], block: int = 0, value: int = 1) -> None:
        """Have it write these pages, each with contents of its own."""
        self.watched.call(write_pages, self._starts[block], list(pages), value)

    def begin_writing(self, pages: Sequence[int], block: int = 0, seed: int = 1) -> None:
        """Have it write these pages, over and over, at random, until ``halt``, but a few for sure."""
        _control[0] = 0
        self.watched.begin(write_until_told, self._starts[block], list(pages), seed)

    def halt(self) -> int:
        """Have it stand still; returns how many pages it has written since ``begin_writing``."""
        _control[0] = 1
        written: int = self.watched.end()
        return written

    def contents(self) -> list[bytes]:
        """Of each block, read from outside; allocates nothing."""
        if self.fd >= 0:
            return [
                os.pread(self.fd, block.used_length, start * PAGE)
                for block, start in zip(self.blocks, self._starts, strict=True)
            ]
        with open(f"/proc/{self.watched.pid}/mem", "rb", buffering=0) as memory:
            return [
                os.pread(memory.fileno(), block.used_length, address)
                for block, address in zip(self.blocks, self.addresses, strict=True)
            ]

    def allocated_pages(self) -> int:
        """Pages that it takes."""
        if self.fd >= 0:
            return allocated_pages(self.fd)
        return sum(
            pagemap.occupied(self.watched.pid, address, block.pages).count()
            for address, block in zip(self.addresses, self.blocks, strict=True)
        )

    def is_watched(self) -> bool:
        """Whether any of its memory is registered with a userfaultfd (``uw`` of /proc/PID/smaps)."""
        with open(f"/proc/{self.watched.pid}/smaps", encoding="ascii", errors="replace") as file:
            return any(" uw" in line for line in file if line.startswith("VmFlags:"))


class Capture:
    """A context manager around a Snapshot of some RAM into memory.

    Args:
        ram: what is captured.
        wrap: makes the channel of the workers, and that of the spill writer, out of the file.
        slots: groups for which there is room in the ring.
        keep: whether zero pages are written like others.
        others: arguments of Snapshot.
    """

    def __init__(
        self,
        ram: Guest,
        *,
        wrap: Callable[[Channel], Channel] = lambda channel: channel,
        wrap_spill: Callable[[Channel], Channel] = lambda channel: channel,
        slots: int = 64,
        gap: int = 4,
        window_pages: int = 256,
        staging_slots: int = 1,
        keep: bool = False,
        max_stall: float = 20.0,
        pieces: Pieces = USUAL,
    ) -> None:
        self.ram = ram
        self.ledger = Ledger(ram.blocks)
        self.layout = self.layout_of(ram)
        self.file = MemoryChannel(self.layout.ram_end)
        self.digests = [shared_words(block.pages) for block in ram.blocks]
        self._guest_blocks = [
            GuestBlock(block=block, source=source, keeps_zero_pages=keep)
            for block, source in zip(ram.blocks, ram.sources, strict=True)
        ]
        self.truth: list[bytes] = []
        groups = Groups(ram.blocks, register(ram.userfaultfd, ram.blocks, ram.addresses))
        origin = Origin(groups=groups, sources=ram.sources, data=self.ledger.data)
        target = Target(
            blocks=self.layout.blocks,
            present=self.ledger.present,
            digests=self.digests,
            keep_zero_pages=[keep] * len(ram.blocks),
            max_gap_pages=gap,
        )
        workers = wrap(self.file)
        self.snapshot = Snapshot(
            origin,
            target,
            ram.userfaultfd,
            staging=Staging(lambda: workers, PAGE, window_pages=window_pages, slots=staging_slots),
            window_pages=window_pages,
            spill=wrap_spill(self.file),
            max_stall=max_stall,
            capture_memory=slots * 64 * PAGE,
            pieces=pieces,
        )

    @staticmethod
    def layout_of(ram: Guest) -> FileLayout:
        """Where its pages go."""
        return FileLayout.plan("m", ram.blocks, alignment=PAGE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.snapshot.close()

    @property
    def processes(self) -> Processes:
        """Those of the snapshot."""
        return self.snapshot._running

    def protect(self) -> None:
        """From processes to protection and data maps."""
        self.ledger.map_data(self._guest_blocks)
        self.snapshot.prepare()
        self.snapshot.protect()
        self.ledger.map_newly_touched(self._guest_blocks)

    def fix(self) -> None:
        """T, of a process that stands still; what it holds is noted as the truth."""
        self.snapshot.fix()
        self.truth = self.ram.contents()

    def work(self) -> None:
        """What workers do, one shard after the other."""
        self.snapshot.add_noted()
        self.snapshot.job.open()
        for shard in plan_shards(self.ledger.data, workers=1):
            self.snapshot.job.run(shard)

    def work_and_end(self) -> None:
        """All that happens between T and the end."""
        self.work()
        self.snapshot.end()

    def spilled(self) -> None:
        """Return when the spill writer has nothing to do."""
        while len(self.processes._ring):
            os.sched_yield()

    def finish(self) -> Figures:
        """The end, and that the file holds the truth."""
        self.snapshot.end()
        figures = self.snapshot.finish()
        assert figures is not None
        self.check()
        return figures

    def check(self) -> None:
        """Every page in the file, or absent and zero in both; every digest right."""
        for number, (saved, truth) in enumerate(zip(self.layout.blocks, self.truth, strict=True)):
            present, digests = self.ledger.present[number], self.digests[number].tolist()
            wrong = []
            for page in range(saved.block.pages):
                place = saved.page_offset(page)
                found, expected = self.file.memory[place : place + PAGE], truth[page * PAGE : (page + 1) * PAGE]
                digest = xxhash.xxh3_64_intdigest(expected) if present.test(page) else 0
                if found != expected or digests[page] != digest or (any(expected) and not present.test(page)):
                    wrong.append(page)
            assert not wrong, f"block {number}"


def write_pages(memory: mmap.mmap, start: int, pages: Sequence[int], value: int) -> None:
    """Each with contents of its own, most of them zeros."""
    view = np.frombuffer(memory, np.uint64).reshape(-1, PAGE // 8)
    for page in pages:
        view[start + page, page % 512] = value << 32 | page + 1


def write_until_told(memory: mmap.mmap, start: int, pages: Sequence[int], seed: int) -> int:
    view = np.frombuffer(memory, np.uint64).reshape(-1, PAGE // 8)
    random = np.random.default_rng(seed)
    written = 0
    while True:
        for page in random.choice(pages, 64).tolist():
            if _control[0] and written >= 16:
                return written
            written += 1
            if written % 5:
                view[start + page, written % 512] = written
            else:
                view[start + page] = 0


def discard(memory: mmap.mmap, fd: int, first: int, count: int) -> None:
    """As QEMU does (ram_block_discard_range, system/physmem.c): a hole in the file, if there is one, then madvise."""
    if fd >= 0:
        linux.fallocate(fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, first * PAGE, count * PAGE)
    memory.madvise(mmap.MADV_DONTNEED, first * PAGE, count * PAGE)
