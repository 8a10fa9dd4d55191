"""The obvious ways to write RAM, and the two parts of the work; run in the process that ``child.py`` is.

- ours-threads: threads instead of processes, each with a part of RAM: test for zero, write runs of the rest.
- page-by-page: one ``pwrite`` for every page that is not zero, at its fixed offset.
- sequential: a stream that appends every page with an 8-byte head, as QEMU does without mapped-ram.
- scan: the zero test alone. copy: memory to memory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.bitmap import runs_of_ones
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Pages, PageSource
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, PageRange
from parallel_fixedram.core.sequential import PAGE_HEAD
from parallel_fixedram.core.shards import WINDOW_PAGES
from parallel_fixedram.engine.pages.window import nonzero_pages
from parallel_fixedram.experiments.fresh_process import RunAnswer, RunOrder
from parallel_fixedram.experiments.ways.way import file_bytes
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.verbs.open import open_ram

FLAG_ZERO, FLAG_PAGE, FLAG_CONTINUE = 0x02, 0x08, 0x20
"""In the lowest bits of a head, next to the page's address (QEMU migration/ram.c, RAM_SAVE_FLAG_*)."""

_PAGES_PER_CALL = 32
"""QEMU hands 64 pieces to writev, a page and its head are two (migration/qemu-file.c, MAX_IOV_SIZE)."""
_COPY_BYTES = 64 << 20
"""Room that is copied to again and again: larger than any cache."""


@dataclass(frozen=True, slots=True)
class _Ram:
    """One block of RAM, mapped."""

    source: PageSource
    data: list[PageRange]
    """What is no hole."""
    pages: int

    def windows(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, Pages]]:
        """Pages of the data between ``first`` and ``end``, 1 MiB at a time, each with the number of the first."""
        end = self.pages if end is None else end
        for each in self.data:
            for start in range(max(each.first, first), min(each.end, end), WINDOW_PAGES):
                yield start, self.source.pages(start, min(WINDOW_PAGES, each.end - start, end - start))


@dataclass(slots=True)
class _Written:
    """What a writer did."""

    pages: int = 0
    bytes: int = 0


_Writer = Callable[[RunOrder, _Ram, FileChannel], _Written]


def measure(order: RunOrder) -> RunAnswer:
    """Do it once.

    Raises:
        FixedRamError: it failed.
    """
    started = time.perf_counter()
    with _mapped(order) as ram:
        if order.way in _PARTS:
            return _measure_part(order, ram)
        writer = _WRITERS[order.way]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (os.O_DIRECT if order.direct_io == "on" else 0)
        try:
            fd = os.open(order.path, flags, 0o600)
        except OSError as error:
            raise HostError.from_os(f"cannot make {order.path!r}", error) from error
        try:
            written = writer(order, ram, FileChannel(fd, order.path))
            last_write = time.perf_counter() - started
            os.fdatasync(fd)
            total = time.perf_counter() - started
        except OSError as error:
            raise HostError.from_os(f"cannot write {order.path!r}", error) from error
        finally:
            os.close(fd)
    length, allocated = file_bytes(order.path)
    return RunAnswer(
        seconds={"total": total, "last_write": last_write},
        bytes={
            "ram": ram.pages * TARGET_PAGE_SIZE,
            "data": written.pages * TARGET_PAGE_SIZE,
            "written": written.bytes,
            "file": length,
            "allocated": allocated,
        },
    )


@contextlib.contextmanager
def _mapped(order: RunOrder) -> Iterator[_Ram]:
    """The one block of the order's RAM."""
    with open_ram(order.ram) as machine:
        (each,) = machine.guest_blocks()
        data = each.source.data_ranges(PageRange(0, each.block.pages))
        each.source.open()
        yield _Ram(each.source, data, each.block.pages)


def _threads(order: RunOrder, ram: _Ram, channel: FileChannel) -> _Written:
    """Each thread has a part of RAM; numpy and ``pwrite`` let others run meanwhile."""
    os.ftruncate(channel.fd, ram.pages * TARGET_PAGE_SIZE)
    edges = [ram.pages * number // order.channels for number in range(order.channels + 1)]
    results = [_Written() for _ in range(order.channels)]
    failures: list[BaseException] = []

    def part(number: int) -> None:
        try:
            for first, pages in ram.windows(edges[number], edges[number + 1]):
                for start, count in runs_of_ones(nonzero_pages(pages)).tolist():
                    channel.write((first + start) * TARGET_PAGE_SIZE, pages[start : start + count].data.cast("B"))
                    results[number].pages += count
        except BaseException as error:  # a thread cannot fail its caller otherwise
            failures.append(error)

    threads = [threading.Thread(target=part, args=(number,)) for number in range(order.channels)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    pages = sum(each.pages for each in results)
    return _Written(pages, pages * TARGET_PAGE_SIZE)


def _page_by_page(_order: RunOrder, ram: _Ram, channel: FileChannel) -> _Written:
    os.ftruncate(channel.fd, ram.pages * TARGET_PAGE_SIZE)
    written = _Written()
    for first, pages in ram.windows():
        bits = nonzero_pages(pages)
        for number in np.flatnonzero(bits).tolist():
            channel.write((first + number) * TARGET_PAGE_SIZE, pages[number].data.cast("B"))
            written.pages += 1
    written.bytes = written.pages * TARGET_PAGE_SIZE
    return written


def _sequential(_order: RunOrder, ram: _Ram, channel: FileChannel) -> _Written:
    stream, after = _Stream(channel), 0
    for first, pages in ram.windows():
        for number in range(after, first):  # a hole
            stream.zero(number)
        for number, found in enumerate(nonzero_pages(pages).tolist()):
            if found:
                stream.page(first + number, pages[number].data.cast("B"))
            else:
                stream.zero(first + number)
        after = first + len(pages)
    for number in range(after, ram.pages):
        stream.zero(number)
    stream.flush()
    return stream.written


class _Stream:
    """Appends pages to a file.

    Args:
        channel: the file.
    """

    def __init__(self, channel: FileChannel) -> None:
        self._channel = channel
        self._position = 0
        self._pending: list[bytes | memoryview] = []
        self.written = _Written()

    def zero(self, number: int) -> None:
        """Append the news that a page is zero."""
        self._append(_head(number, FLAG_ZERO) + b"\0")

    def page(self, number: int, data: memoryview) -> None:
        """Append a page."""
        self.written.pages += 1
        self.written.bytes += len(data)
        self._append(_head(number, FLAG_PAGE), data)

    def _append(self, *pieces: bytes | memoryview) -> None:
        self._pending += pieces
        if len(self._pending) >= 2 * _PAGES_PER_CALL:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            size = sum(map(len, self._pending))
            done = os.pwritev(self._channel.fd, self._pending, self._position)
            if done < size:  # as when the disk is full
                self._channel.write(self._position + done, memoryview(b"".join(self._pending))[done:])
            self._position += size
            self._pending = []


def _head(page: int, flag: int) -> bytes:
    return (page * TARGET_PAGE_SIZE | flag | FLAG_CONTINUE).to_bytes(PAGE_HEAD, "big")


_WRITERS: dict[str, _Writer] = {"ours-threads": _threads, "page-by-page": _page_by_page, "sequential": _sequential}


def _scan(ram: _Ram) -> tuple[int, float]:
    started = time.perf_counter()
    pages = sum(int(np.count_nonzero(nonzero_pages(pages))) for _, pages in ram.windows())
    return pages, time.perf_counter() - started


def _copy(ram: _Ram) -> tuple[int, float]:
    room = np.frombuffer(anonymous_memory(_COPY_BYTES), np.uint64).reshape(-1, TARGET_PAGE_SIZE // 8)
    room[:] = 1  # memory from now on, not the zero page
    place = copied = 0
    started = time.perf_counter()
    for _, pages in ram.windows():
        if place + len(pages) > len(room):
            place = 0
        room[place : place + len(pages)] = pages
        place += len(pages)
        copied += len(pages)
    return copied, time.perf_counter() - started


_PARTS = {"scan": _scan, "copy": _copy}


def _measure_part(order: RunOrder, ram: _Ram) -> RunAnswer:
    """One pass over RAM that is mapped already: a part of a save, without its preparations."""
    pages, seconds = _PARTS[order.way](ram)
    return RunAnswer(
        seconds={"total": seconds},
        bytes={"ram": ram.pages * TARGET_PAGE_SIZE, "data": pages * TARGET_PAGE_SIZE},
    )
