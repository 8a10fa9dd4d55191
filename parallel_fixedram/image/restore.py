"""Restore: fill guest RAM from a mapped-ram file, whatever it contained before.

::

    headers, lengths and bitmaps accepted, every destination open -> workers:
        present page                        pread from the file, pwrite into the destination
        zero page, destination has data     made zero (punched, or written together with its neighbours)
        zero page, destination has a hole   left alone: untouched memory stays untouched

``pwrite`` into shared memory fills pages without a page fault for each. A file that is not in the page cache is read
with O_DIRECT, ahead of the writing (``read_ahead``). No destination is touched before the file is accepted; a new one
gets its name only when it is complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap, runs_of_ones, words_for
from parallel_fixedram.core.errors import ContentsDiffer, RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.core.reports.difference import Difference
from parallel_fixedram.core.reports.restore import RestoredBlock, RestoreReport, RestoreSeconds
from parallel_fixedram.core.save_options import STALL_SECONDS
from parallel_fixedram.core.shards import WINDOW_PAGES, Shard
from parallel_fixedram.core.units import format_count
from parallel_fixedram.engine.pages.digest import DigestTable
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.engine.pages.read_ahead import ReadAhead
from parallel_fixedram.engine.pages.window import DIRECT_READ_PAGES, Window, WindowReader, merge_runs, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.engine.workers.progress import run_job
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.memory.ram_target import RamTarget
from parallel_fixedram.image.cold import direct_channel, is_cold
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import check_ranges

JOIN_ZERO_PAGES = 16
"""Most zero pages between two present ones that are bridged rather than punched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a block is restored to."""

    path: str
    """A file in shared memory, with exactly the block's size from ``offset`` on; made if it does not exist."""
    offset: int = 0
    """Where the block starts in the file, bytes."""
    length: int | None = None
    """Bytes for the block, None for the rest of the file; anything but the block's size is refused."""


@dataclass(slots=True, kw_only=True)
class _Part:
    """One block on its way from the file into a destination."""

    saved: SavedBlock
    present: PageBitmap
    filled: PageBitmap
    """Pages of the destination that may contain data now."""
    work: PageBitmap
    """Pages to handle: present ones, and those to make zero."""
    channel: FileChannel
    offset: int
    digests: DigestTable | None


class RestoreJob:
    """Fills the destinations with the pages of a shard."""

    def __init__(self, image: Image, parts: Sequence[_Part], direct: Channel | None) -> None:
        self._image = image
        self._parts = parts
        self._direct = direct

    def open(self) -> None:
        """Allocate the read buffers (Job.open)."""
        page_size = max(part.saved.block.page_size for part in self._parts)
        self._reader: WindowReader | ReadAhead
        if self._direct:
            self._reader, self._window_pages = ReadAhead(self._direct, page_size, DIRECT_READ_PAGES), DIRECT_READ_PAGES
        else:
            self._reader, self._window_pages = WindowReader(self._image.channel, page_size), WINDOW_PAGES

    def run(self, shard: Shard) -> Tally:
        """Restore one shard (Job.run)."""
        part, tally = self._parts[shard.block], Tally()
        wanted = (
            Window(work.first, part.present.page_bits(work.first, len(work.bits)))
            for work in windows(part.work, shard, self._window_pages)
        )
        for window, pages in self._reader.each(part.saved, wanted, tally):
            first, count, present = window.first, len(window.bits), window.bits
            if part.digests:
                tally.found_bad(shard.block, first, part.digests.mismatches(first, pages, present))
            started = time.perf_counter()
            filled = part.filled.page_bits(first, count)
            size, view = part.saved.block.page_size, pages.data.cast("B")
            runs = merge_runs(runs_of_ones(present), JOIN_ZERO_PAGES, only=filled)
            # zero in the file, but perhaps not in the destination; joined writes bring zeros to some of them
            leftover = filled & (present ^ 1)
            for start, length in runs.tolist():
                data = view[start * size : (start + length) * size]
                part.channel.write(part.offset + (first + start) * size, data)
                leftover[start : start + length] = 0
            for start, length in runs_of_ones(leftover).tolist():
                part.channel.punch(part.offset + (first + start) * size, length * size)
            tally.written_pages += int(np.count_nonzero(present))
            tally.write_seconds += time.perf_counter() - started
        return tally


def restore(
    image: Image,
    destinations: Mapping[str, Destination],
    *,
    channels: int = 1,
    check_digests: bool = False,
    observer: Observer = SILENT,
    stall_seconds: float = STALL_SECONDS,
) -> RestoreReport:
    """Fill guest RAM from a file.

    Args:
        image: the open file.
        destinations: by block name; other blocks of the file are left out, and listed in the report.
        channels: number of workers.
        check_digests: whether to check every page against its digest on the way; heads and bitmaps are always checked.
        observer: told about progress.
        stall_seconds: how long a worker may go without moving a byte.

    Raises:
        RequestError: the file does not have a block, or a destination has the wrong size or is given twice; or the file
            has no digests to check. No destination was touched.
        FormatError: the save of the file was not finished. No destination was touched.
        ContentsDiffer: heads or bitmaps do not match their digests, and no destination was touched; or pages do not,
            and existing destinations were filled, but must not be used.
        HostError: a destination cannot be written; the contents of existing destinations are undefined.
    """
    started = time.perf_counter()
    _check_request(image, destinations, check_digests)
    with ExitStack() as stack:
        targets = _open_targets(image, destinations, stack)
        parts = [_part(image, image.block(target.block.idstr), target, check_digests) for target in targets]
        blocks = [part.saved for part in parts]
        direct = stack.enter_context(direct_channel(image, blocks)) if is_cold(image, blocks) else None
        with WorkerPool([RestoreJob(image, parts, direct)], channels, stall_seconds=stall_seconds) as pool:
            work, size = [part.work for part in parts], image.file.page_size
            tally = run_job(pool, 0, work, phase="restore", page_size=size, observer=observer)
        _check(image, parts, tally, [target.path for target in targets if not target.is_new])
        for target in targets:  # after the check, so that a name means that all of it is right
            target.keep()
    return RestoreReport(
        file=image.path,
        channels=channels,
        direct_io=direct is not None,
        blocks=tuple(_restored(part, destinations[part.saved.block.idstr]) for part in parts),
        left_out=tuple(s.block.idstr for s in image.file.blocks if s.block.idstr not in destinations),
        verified=check_digests,
        seconds=_seconds(tally, channels, started),
        bytes=tally.bytes,
    )


def _seconds(tally: Tally, channels: int, started: float) -> RestoreSeconds:
    """How the time since ``started`` was spent."""
    return RestoreSeconds(
        total=time.perf_counter() - started,
        read=tally.read_seconds / channels,
        write=tally.write_seconds / channels,
    )


def _check_request(image: Image, destinations: Mapping[str, Destination], check_digests: bool) -> None:
    """Refuse what cannot be restored, before any destination is touched."""
    for idstr in destinations:
        image.bitmap(idstr)
    if not destinations:
        raise RequestError("no block was given a destination")
    image.check_complete()
    if check_digests and image.file.trailer is None:
        raise RequestError(f"{image.path!r} has no digests to check")
    check_head(image, tables=check_digests)


def _open_targets(image: Image, destinations: Mapping[str, Destination], stack: ExitStack) -> list[RamTarget]:
    """Open the destinations, in the order of the file's blocks; no two of them may share a byte."""
    targets: list[RamTarget] = []
    for saved in image.blocks:
        if (wanted := destinations.get(saved.block.idstr)) is not None:
            _check_new(saved.block.idstr, wanted.path, targets)
            target = RamTarget(saved.block, wanted.path, offset=wanted.offset, length=wanted.length)
            stack.push(target)  # before it is entered, so that a file it makes is removed whatever happens
            target.__enter__()
            _check_apart(image, target, targets)
            targets.append(target)
    return targets


def check_head(image: Image, *, tables: bool = True) -> None:
    """Check heads and bitmaps against their digests, if the file has any: they say where each page goes.

    Args:
        image: the open file.
        tables: whether to check the page digests themselves, which is needed only if they will be used.

    Raises:
        ContentsDiffer: they do not match.
    """
    for difference in check_ranges(image, image.file.trailer, tables=tables) if image.file.trailer else ():
        raise ContentsDiffer(f"{image.path!r}: {difference}")


def _check_new(idstr: str, path: str, others: Sequence[RamTarget]) -> None:
    """Refuse a destination that is being made for another block and does not have its name yet."""
    for other in others:
        if other.is_new and os.path.realpath(other.path) == os.path.realpath(path):
            raise RequestError(f"blocks {other.block.idstr!r} and {idstr!r} share {path!r}")


def _check_apart(image: Image, target: RamTarget, others: Sequence[RamTarget]) -> None:
    """Refuse a destination that is the file itself, or shares bytes with another destination."""
    status = target.channel().stat()
    if os.path.samestat(status, image.channel.stat()):
        raise RequestError(f"destination {target.path!r} is the file to restore from")
    for other in others:
        apart = target.end <= other.offset or other.end <= target.offset
        if not apart and os.path.samestat(status, other.channel().stat()):
            raise RequestError(f"blocks {other.block.idstr!r} and {target.block.idstr!r} share {target.path!r}")


def _part(image: Image, saved: SavedBlock, target: RamTarget, check_digests: bool) -> _Part:
    pages = saved.block.pages
    present = image.bitmap(saved.block.idstr)
    filled = PageBitmap(pages, shared_words(words_for(pages)))
    for found in target.data_ranges():
        filled.set_range(found)
    return _Part(
        saved=saved,
        present=present,
        filled=filled,
        work=PageBitmap(pages, present.words | filled.words),
        channel=target.channel(),
        offset=target.offset,
        digests=image.digest_table(saved) if check_digests else None,
    )


def _check(image: Image, parts: Sequence[_Part], tally: Tally, spoilt: Sequence[str]) -> None:
    """Refuse pages that do not match their digests; ``spoilt`` are the destinations that have them now."""
    if tally.bad_pages:
        block, first, pages = min(tally.findings)
        saved = parts[block].saved
        what = Difference(
            what="does not match its digest",
            idstr=saved.block.idstr,
            first_page=first,
            pages=pages,
            offset=saved.page_offset(first),
        )
        advice = f"do not use {', '.join(map(repr, spoilt))}" if spoilt else "nothing was restored"
        raise ContentsDiffer(f"{image.path!r}: {what}", hint=f"{format_count(tally.bad_pages, 'bad page')}; {advice}")


def _restored(part: _Part, destination: Destination) -> RestoredBlock:
    data_pages = part.present.count()
    return RestoredBlock(
        idstr=part.saved.block.idstr,
        path=destination.path,
        used_length=part.saved.block.used_length,
        data_pages=data_pages,
        zero_pages=part.saved.block.pages - data_pages,
    )
