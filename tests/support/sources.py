"""Machines, page sources and dirty sources for tests, scripted by pictures."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
import pytest
from support.pictures import PAGE, content, memfd, page

from parallel_fixedram.core.bitmap import Bits, PageBitmap
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.protocols import DirtySource, GuestBlock, Pages, PageSource
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.machines.builtin.dirty_log import DirtyLog
from parallel_fixedram.machines.qemu.discovery import FIRMWARE_BYTES
from parallel_fixedram.machines.ram_only import RamOnly

_POOL = Path("/proc/sys/vm/nr_hugepages")


class AllDirty:
    """A DirtySource that never knows, and so says that everything was written."""

    def sync(self, into: Sequence[PageBitmap]) -> int:
        before = sum(bitmap.count() for bitmap in into)
        for bitmap in into:
            bitmap.set_all()
        return sum(bitmap.count() for bitmap in into) - before


class WatchedSource:
    """A PageSource that notes in ``wrong`` every read outside of ``allowed`` (1 for each page that may be read)."""

    def __init__(self, inner: PageSource, allowed: Sequence[int]) -> None:
        self._inner = inner
        self._allowed = allowed
        self.tells_holes, self.views_stay_valid = inner.tells_holes, inner.views_stay_valid
        self.wrong: list[PageRange] = []

    def open(self) -> None:
        self._inner.open()

    def pages(self, first: int, count: int, wanted: Bits | None = None) -> Pages:
        looked_at = np.ones(count, np.uint8) if wanted is None else wanted
        if not all(self._allowed[first + page] for page in np.flatnonzero(looked_at)):
            self.wrong.append(PageRange(first, count))
        return self._inner.pages(first, count, wanted)

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        return self._inner.data_ranges(within)

    def newly_touched(self, data: PageBitmap) -> list[PageRange]:
        return self._inner.newly_touched(data)

    def close(self) -> None:
        self._inner.close()


class ScriptedGuest(RamOnly):
    """A Machine and its DirtySource whose RAM does as a script says.

    Args:
        ram: by block name, the picture that its RAM has at first.
        script: each item is what the guest writes into its first block before the next ``sync`` of the dirty bitmap, or
            before it is paused: a picture (``.`` leaves the page alone, ``0`` writes zeros) or a function to call.
        running: whether it runs at first.
        device_state: its device sections, or a function that gives them.
        small: names of the blocks that are not main memory.

    Attributes:
        calls: ``pause``, ``resume`` and ``device_state`` in the order in which they came.
        fds: descriptors of the blocks' memory.
        logs: dirty logs of the blocks, which forks share.
        script: what is left of the script.
    """

    name = "scripted"

    def __init__(
        self,
        ram: Mapping[str, str],
        script: Sequence[str | Callable[[], object]] = (),
        *,
        running: bool = True,
        device_state: bytes | Callable[[], bytes] = b"",
        small: Collection[str] = (),
    ) -> None:
        self.fds = {idstr: memfd(picture) for idstr, picture in ram.items()}
        self.logs = [DirtyLog(len(picture)) for picture in ram.values()]
        self.calls: list[str] = []
        self.running = running
        self.script = list(script)
        self.torn: list[str | None] = []
        """What ``resume`` says, call by call."""
        self.changed: list[bool] = []
        """What ``look_again`` says, call by call."""
        self._was_running = False
        self._device_state = device_state
        self._blocks = []
        for idstr, fd in self.fds.items():
            length = os.fstat(fd).st_size
            block = RAMBlock(idstr=idstr, used_length=length)
            source = MappedSource(fd, length=length)
            is_small = idstr in small
            keeps = is_small and length <= FIRMWARE_BYTES  # as of a QEMU
            self._blocks.append(GuestBlock(block=block, source=source, main=not is_small, keeps_zero_pages=keeps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, index: int, letter: str, block: int = 0) -> None:
        """The guest writes a page and its dirty log notices."""
        os.pwrite(list(self.fds.values())[block], page(letter), index * PAGE)
        self.logs[block].mark(np.array([index]))

    def guest_blocks(self) -> Sequence[GuestBlock]:
        return self._blocks

    def sync(self, into: Sequence[PageBitmap]) -> int:
        if self.running:
            self._act()
        return sum(log.sync([bitmap]) for log, bitmap in zip(self.logs, into, strict=True))

    def holds(self, path: str) -> bool:
        return False

    def is_running(self) -> bool:
        return self.running

    def dirty_source(self) -> DirtySource | None:
        return None

    def address_space(self) -> NoReturn:
        raise MachineError("nobody runs it")

    def pause(self) -> bool:
        self.calls.append("pause")
        self._act()
        self._was_running, self.running = self.running, False
        return self._was_running

    def resume(self) -> str | None:
        self.calls.append("resume")
        self.running, self._was_running = self._was_running or self.running, False
        return self.torn.pop(0) if self.torn else None

    def definition(self) -> bytes:
        return b""

    def saved(self) -> None: ...

    def look_again(self) -> bool:
        return self.changed.pop(0) if self.changed else False

    def device_state(self) -> bytes:
        self.calls.append("device_state")
        return self._device_state() if callable(self._device_state) else self._device_state

    def close(self) -> None:
        for each in self._blocks:
            each.source.close()
        for log in self.logs:
            log.close()
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def _act(self) -> None:
        if not self.script:
            return
        step = self.script.pop(0)
        if callable(step):
            step()
            return
        for index, letter in enumerate(step):
            if letter != ".":
                self.write(index, letter)


@dataclass(frozen=True)
class HugeFile:
    """A memory file on huge pages, none of them taken yet."""

    fd: int
    size: int
    page_size: int
    """Of a huge page, bytes."""

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def draw(self, picture: str) -> None:
        """Fill the file through a mapping; a part of a huge page that is drawn takes all of it."""
        with mmap.mmap(self.fd, self.size) as view:
            for start in range(0, len(picture), 64):
                if set(part := picture[start : start + 64]) - {"-"}:
                    view[start * 4096 : (start + len(part)) * 4096] = content(part)


@contextmanager
def huge_file(huge_pages: int, *, pool: int | None = None) -> Iterator[HugeFile]:
    """A file of so many huge pages out of a pool of ``pool`` (default: twice as many), which is put back afterwards.

    Skips the test where huge pages cannot be had. The pool is the machine's: tests that run side by side take turns.
    """
    lock = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _pool_of(2 * huge_pages if pool is None else pool):
            fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
            try:
                page_size = os.fstat(fd).st_blksize
                os.ftruncate(fd, huge_pages * page_size)
                yield HugeFile(fd, huge_pages * page_size, page_size)
            finally:
                os.close(fd)
    finally:
        os.close(lock)


@contextmanager
def _pool_of(more: int) -> Iterator[None]:
    before = _POOL.read_text().strip() if _POOL.exists() else "0"
    try:
        _POOL.write_text(str(int(before) + more))
    except OSError as error:
        pytest.skip(f"cannot make huge pages: {error}")
    try:
        if int(_POOL.read_text()) != int(before) + more:
            pytest.skip("not enough free memory in one piece for huge pages")
        yield
    finally:
        _POOL.write_text(before)
