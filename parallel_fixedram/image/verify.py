"""Verify: does the file match its digests and, on request, live RAM?

Opening the file has checked its structure already. What is left, each with a finding of its own:

- the trailer, and everything that is not a page (heads, bitmaps, device sections), against their digests;
- libvirt's header and XML, if the file is a save image: people edit them, which does not affect the RAM;
- every present page against its digest;
- the places of zero pages, which in our files read as zeros; QEMU leaves stale bytes there in a live save;
- on request every page against live RAM.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.reports.difference import Difference
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.digest import range_digest
from parallel_fixedram.engine.pages.window import WindowReader, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.trailer import DIGEST_BYTES
from parallel_fixedram.format.trailer_reader import Trailer
from parallel_fixedram.image.compare import CompareJob, FileSide, RamSide, page_differences, run_check
from parallel_fixedram.image.describe import block_reports
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.stale import StaleJob

MAX_DIFFERENCES = 1000
"""Most differences that a report lists; all are counted."""


class DigestCheckJob:
    """Checks the present pages of a shard against their digests."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._blocks = image.blocks
        self.work = [image.bitmap(saved.block.idstr) for saved in image.blocks]

    def open(self) -> None:
        """Allocate the read buffer and find the tables (Job.open)."""
        self._reader = WindowReader(self._image.channel, self._image.file.page_size)
        self._tables = [self._image.digest_table(saved) for saved in self._blocks]

    def run(self, shard: Shard) -> Tally:
        """Check one shard (Job.run)."""
        tally, table = Tally(), self._tables[shard.block]
        assert table is not None, "only files with a trailer are checked"
        for window in windows(self.work[shard.block], shard):
            pages = self._reader.read(self._blocks[shard.block], window, tally)
            tally.found_bad(shard.block, window.first, table.mismatches(window.first, pages, window.bits))
        return tally


def verify(
    image: Image,
    *,
    quick: bool = False,
    ram: Mapping[str, GuestBlock] | None = None,
    loaded_by: str | None = None,
    channels: int = 1,
    observer: Observer = SILENT,
) -> VerifyReport:
    """Verify an open file; the report's ``ok`` is true if no difference was found.

    Args:
        image: the file.
        quick: structure only; no page is read.
        ram: live RAM to compare blocks with, by block name; it must not change meanwhile.
        loaded_by: the program that loaded the file into that RAM, if one did.
        channels: number of workers.
        observer: told about progress.

    Raises:
        FormatError: the file contradicts itself.
        RequestError: the file does not have a block that RAM is given for, or has it with another length.
        HostError: the file or RAM cannot be read.
    """
    started = time.perf_counter()
    image.check_complete()
    pairs = _pairs(image, ram or {})
    trailer = None if quick else image.file.trailer
    differences = check_edits(image, trailer) + check_ranges(image, trailer) if trailer else []
    bad_pages, stale_pages = 0, None
    if pairs or not quick:
        checks = _Checks(image, pairs, digests=bool(trailer), slots=not quick, ram=_LOADED if loaded_by else _RAM)
        bad_pages, stale_pages = checks.run(channels, observer)
        differences += checks.differences
    return VerifyReport(
        file=image.path,
        ok=not differences,
        quick=quick,
        digests=bool(trailer),
        ram=tuple(saved.block.idstr for saved, _ in pairs),
        loaded_by=loaded_by,
        ram_bytes=sum(saved.block.used_length for saved, _ in pairs),
        blocks=block_reports(image),
        stale_pages=stale_pages,
        bad_pages=bad_pages,
        differences=tuple(differences[:MAX_DIFFERENCES]),
        truncated=len(differences) > MAX_DIFFERENCES,
        warnings=image.file.warnings,
        seconds=time.perf_counter() - started,
    )


class _Checks:
    """The checks that read pages, in the workers of one pool."""

    def __init__(
        self, image: Image, pairs: Sequence[tuple[SavedBlock, RamSide]], *, digests: bool, slots: bool, ram: str
    ) -> None:
        self._image = image
        self.differences: list[Difference] = []
        self._jobs: list[tuple[str, Job, Sequence[PageBitmap], Sequence[SavedBlock]]] = []
        if digests:
            digest_job = DigestCheckJob(image)
            self._jobs.append((_DIGESTS, digest_job, digest_job.work, image.blocks))
        if slots:
            slot_job = StaleJob(image, image.blocks)
            self._jobs.append((_SLOTS, slot_job, slot_job.work, image.blocks))
        if pairs:
            compare_job = CompareJob([(FileSide(image, saved), side) for saved, side in pairs])
            self._jobs.append((ram, compare_job, compare_job.work, [saved for saved, _ in pairs]))

    def run(self, channels: int, observer: Observer) -> tuple[int, int | None]:
        """Run them; returns the number of bad pages, and of stale ones if they were checked."""
        bad, stale = 0, None
        with WorkerPool([job for _, job, _, _ in self._jobs], channels) as pool:
            for index, (what, _, work, blocks) in enumerate(self._jobs):
                size = self._image.file.page_size
                tally = run_check(pool, index, work, phase=_PHASES[what], page_size=size, observer=observer)
                if what == _SLOTS:
                    stale = tally.bad_pages
                    if self._image.file.trailer is None:
                        continue  # QEMU's own live saves have them, and its loader honours the bitmap
                bad += tally.bad_pages
                self.differences += page_differences(what, blocks, tally.findings)
        return bad, stale


_DIGESTS = "does not match its digest"
_SLOTS = "is zero by the bitmap, but its place in the file is not"
_RAM = "differs from RAM"
_LOADED = "differs from the QEMU that loaded the file"
_HEAD = "libvirt's header (whether it ran, where the cookie is)"
_XML = "libvirt's domain XML"
_PHASES = {_DIGESTS: "digests", _SLOTS: "zero pages", _RAM: "RAM", _LOADED: "loaded RAM"}


def _pairs(image: Image, ram: Mapping[str, GuestBlock]) -> list[tuple[SavedBlock, RamSide]]:
    pairs = []
    for idstr, guest in ram.items():
        saved = image.block(idstr)
        if guest.block.used_length != saved.block.used_length:
            raise RequestError(
                f"block {idstr!r} has {saved.block.used_length} bytes in the file, {guest.block.used_length} in RAM"
            )
        if guest.block.page_size != saved.block.page_size:
            raise RequestError(
                f"block {idstr!r} has pages of {saved.block.page_size} bytes in the file, "
                f"{guest.block.page_size} in RAM"
            )
        pairs.append((saved, RamSide(guest.source, saved.block.pages, saved.block.page_size)))
    return pairs


def check_edits(image: Image, trailer: Trailer) -> list[Difference]:
    """Check what precedes the stream against its digests; it may be edited without affecting the RAM."""
    return [
        _byte_difference(f"{_HEAD if extent.offset == 0 else _XML} does not match its digest", None, extent.offset)
        for extent in trailer.head
        if range_digest(image.channel, extent.offset, extent.offset + extent.length) != extent.digest
    ]


def check_ranges(image: Image, trailer: Trailer, *, tables: bool = True) -> list[Difference]:
    """Check heads, bitmaps, device sections and clone stream against their digests; no page is read.

    Args:
        image: the open file.
        trailer: its trailer.
        tables: whether to check the whole trailer, most of which is page digests: 0.2 % of RAM.
    """
    found = []
    end = trailer.file_length - DIGEST_BYTES
    if tables and range_digest(image.channel, trailer.offset, end) != trailer.digest:
        found.append(_byte_difference("the trailer does not match its digest", None, trailer.offset))
    heads = {saved.header.pages_offset: saved.block.idstr for saved in image.blocks}
    for extent in trailer.extents:
        if range_digest(image.channel, extent.offset, extent.offset + extent.length) != extent.digest:
            idstr = heads.get(extent.offset + extent.length)
            what = "the bytes before its pages (head, record, bitmap)" if idstr else "the end of the stream"
            if trailer.clone_offset and extent.offset == trailer.clone_offset:
                what = "the clone stream's bytes"
            found.append(_byte_difference(f"{what} do not match their digest", idstr, extent.offset))
    return found


def _byte_difference(what: str, idstr: str | None, offset: int) -> Difference:
    return Difference(what=what, idstr=idstr, first_page=None, pages=0, offset=offset)
