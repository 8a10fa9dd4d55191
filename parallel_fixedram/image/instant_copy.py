"""InstantCopy: a copy of all RAM of a machine while it stands still, to compare the file of that instant with.

It is for checking a way to capture; a normal save does not need it. The machine stands still for as long as the copy
takes, and the copy needs as much memory as the machine has data.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import HostError, InstantDiffers
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.protocols import GuestBlock, Pages
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.core.units import format_count, format_size
from parallel_fixedram.engine.pages.ledger import shared_bitmaps
from parallel_fixedram.engine.pages.window import windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.engine.workers.progress import run_job
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.memory_limit import check_memory
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import verify


class InstantCopy:
    """Context manager around the copy, and workers that wait for ``take``.

    Args:
        guest_blocks: the machine's blocks.
        data: pages of each that contain data, which is roughly what will be copied.
        channels: number of workers.

    Raises:
        HostError: there is not enough memory, or workers cannot be started.
    """

    def __init__(self, guest_blocks: Sequence[GuestBlock], data: Sequence[PageBitmap], channels: int) -> None:
        self._guest_blocks = guest_blocks
        self._page_size = guest_blocks[0].block.page_size
        needed = sum(each.count() for each in data) * self._page_size
        check_memory(needed, f"a copy of the guest's RAM takes {format_size(needed)}")
        self._channels = channels
        self._stack = ExitStack()

    @undone_if_it_fails
    def __enter__(self) -> Self:
        self._memory = [_memory(self._stack, each.block) for each in self._guest_blocks]
        self._job = _CopyJob(self._guest_blocks, self._memory)
        self._pool = self._stack.enter_context(WorkerPool([self._job], self._channels))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def take(self, observer: Observer) -> None:
        """Copy all RAM, replacing an earlier copy; the machine must stand still.

        Raises:
            HostError: the memory can no longer be reached.
        """
        for fd, each, content in zip(self._memory, self._guest_blocks, self._job.content, strict=True):
            # so that nothing of an earlier copy is left
            os.ftruncate(fd, 0)
            os.ftruncate(fd, each.block.used_length)
            content.words[:] = 0
            for found in each.source.data_ranges(PageRange(0, each.block.pages)):
                content.set_range(found)
        run_job(self._pool, 0, self._job.content, phase="copy", page_size=self._page_size, observer=observer)

    def check(self, image: Image, observer: Observer) -> None:
        """Check a file against its own digests, and page by page against the copy.

        Raises:
            InstantDiffers: the file is not what was copied.
            FormatError: the file contradicts itself.
            HostError: the file cannot be read.
        """
        with ExitStack() as stack:
            ram = {}
            for fd, each in zip(self._memory, self._guest_blocks, strict=True):
                source = MappedSource(fd, length=each.block.used_length)
                stack.callback(source.close)
                ram[each.block.idstr] = replace(each, source=source)
            report = verify(image, ram=ram, channels=self._channels, observer=observer)
        if not report.ok:
            pages, first = report.bad_pages, report.differences[0]
            raise InstantDiffers(
                f"{format_count(pages, 'page')} of the file differ from RAM while the guest stood still: {first}",
                pages=pages,
            )


class _CopyJob:
    """Copies the pages of ``content`` from their sources into shared memory.

    Args:
        guest_blocks: what to copy.
        memory: descriptors of the copies, one for each block, each as long as its block.

    Attributes:
        content: which pages to copy; a bitmap for each block, shared with forks.
    """

    def __init__(self, guest_blocks: Sequence[GuestBlock], memory: Sequence[int]) -> None:
        self._guest_blocks = guest_blocks
        self._memory = memory
        self.content = shared_bitmaps([each.block for each in guest_blocks])

    def open(self) -> None:
        """Map sources and copies (Job.open)."""
        self._copies: list[Pages] = []
        for fd, each in zip(self._memory, self._guest_blocks, strict=True):
            each.source.open()
            view = mmap.mmap(fd, each.block.used_length)
            self._copies.append(np.frombuffer(view, np.uint64).reshape(each.block.pages, -1))

    def run(self, shard: Shard) -> Tally:
        """Copy one shard (Job.run)."""
        source, copy = self._guest_blocks[shard.block].source, self._copies[shard.block]
        for window in windows(self.content[shard.block], shard):
            wanted = np.flatnonzero(window.bits)
            pages = source.pages(window.first, len(window.bits), window.bits)
            copy[window.first + wanted] = pages[wanted]
        return Tally()


def _memory(stack: ExitStack, block: RAMBlock) -> int:
    try:
        fd = os.memfd_create("instant-copy", os.MFD_CLOEXEC)
    except OSError as error:
        raise HostError.from_os("cannot get memory for a copy of the guest's RAM", error) from error
    stack.callback(linux.close, fd)
    os.ftruncate(fd, block.used_length)
    return fd
