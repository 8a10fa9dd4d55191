"""Ways that are measured in a fresh process: ours, the naive ones, and the parts of the work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.sequential import PAGE_HEAD, ZERO_PAGE
from parallel_fixedram.experiments.fresh_process import RunAnswer, RunOrder, carry_out
from parallel_fixedram.experiments.results import Bytes, Instrumented, Seconds
from parallel_fixedram.experiments.ways import naive
from parallel_fixedram.experiments.ways.way import Measured, Run, Stretch
from parallel_fixedram.host.files.channel import data_extents
from parallel_fixedram.verbs.verify import verify

_CHUNK = 4 << 20
_OPTIONS = (
    *("channels", "direct_io", "gap_pages", "shard_pages", "queue_depth"),
    *("calibrate", "capture", "durability"),
)
"""Parameters of a case that an order has, too."""


class _Fresh:
    """What a fresh process of this package does."""

    def why_missing(self) -> str | None:
        """Nothing is (Way.why_missing)."""
        return None

    def run(self, run: Run) -> Measured:
        """Write in a fresh process (Way.run)."""
        done = carry_out(_order(run))
        return _measured(done.answer, done.wall)


class Ours(_Fresh):
    """A save by this package."""

    def instrumented(self, run: Run) -> Instrumented:
        """Save once more, watched.

        Raises:
            FixedRamError: it failed.
        """
        done = carry_out(_order(run, trace=True), watch=True)
        return Instrumented(
            private_bytes_peak=done.private_bytes_peak,
            timeline=tuple((w, start, end, offset, size) for w, start, end, offset, size in done.answer.timeline or []),
            write_bins=tuple(done.answer.write_bins or ()),
        )

    def verify(self, run: Run) -> str:
        """Digests, and once a case live RAM, where it stands still and can be opened (Way.verify)."""
        found = verify(run.path)
        if not found.ok:
            raise run.wrong(f"{found.differences[0]}")
        if not found.digests:
            raise run.wrong("the file has no digests")
        if not (run.thorough and run.source.stands_still and run.source.ram):
            return "digests"
        found = verify(run.path, ram=run.source.ram)
        if not found.ok:
            raise run.wrong(f"{found.differences[0]}")
        return "ram"


class Naive(_Fresh):
    """Fixed offsets without anything else: threads, or page by page."""

    def verify(self, run: Run) -> str:
        """The file is RAM as it is: every byte is compared (Way.verify)."""
        with _opened(run.path) as file, _opened(_ram_path(run)) as ram:
            size = os.fstat(ram).st_size
            if os.fstat(file).st_size != size:
                raise run.wrong(f"{os.fstat(file).st_size} bytes, expected {size}")
            chunks = {place // _CHUNK for fd in (file, ram) for place in _places(fd, size)}
            for chunk in sorted(chunks):
                length = min(_CHUNK, size - chunk * _CHUNK)
                if os.pread(file, length, chunk * _CHUNK) != os.pread(ram, length, chunk * _CHUNK):
                    raise run.wrong(f"differs from RAM between {chunk * _CHUNK:#x} and {chunk * _CHUNK + length:#x}")
        return "ram"


class Sequential(Naive):
    """A stream that appends every page."""

    def verify(self, run: Run) -> str:
        """Its length; once a case every page is compared (Way.verify)."""
        with _opened(run.path) as file, _opened(_ram_path(run)) as ram:
            size, data = run.source.size // TARGET_PAGE_SIZE, run.source.data_bytes // TARGET_PAGE_SIZE
            expected = data * (PAGE_HEAD + TARGET_PAGE_SIZE) + (size - data) * ZERO_PAGE
            if (length := os.fstat(file).st_size) != expected:
                raise run.wrong(f"{length} bytes, expected {expected}")
            if not run.thorough:
                return "size"
            for number in range(size):
                self._compare(run, number, file, ram)
        return "ram"

    def _compare(self, run: Run, number: int, file: int, ram: int) -> None:
        head = int.from_bytes(os.read(file, PAGE_HEAD), "big")
        address, flags = head // TARGET_PAGE_SIZE * TARGET_PAGE_SIZE, head % TARGET_PAGE_SIZE
        if address != number * TARGET_PAGE_SIZE:
            raise run.wrong(f"page {address:#x} in the place of {number * TARGET_PAGE_SIZE:#x}")
        page = os.read(file, TARGET_PAGE_SIZE) if flags & naive.FLAG_PAGE else os.read(file, 1) * TARGET_PAGE_SIZE
        if page != os.pread(ram, TARGET_PAGE_SIZE, address):
            raise run.wrong(f"page {address:#x} differs from RAM")


class Part:
    """A part of the work, which writes nothing."""

    def why_missing(self) -> str | None:
        """Nothing is (Way.why_missing)."""
        return None

    def run(self, run: Run) -> Measured:
        """One pass in a fresh process (Way.run)."""
        done = carry_out(_order(run))
        return _measured(done.answer, done.wall)

    def verify(self, run: Run) -> str:
        """There is no file (Way.verify)."""
        return "no"


def _order(run: Run, *, trace: bool = False) -> RunOrder:
    case, source = run.case, run.source
    given: dict[str, Any] = {name: value for name in _OPTIONS if (value := getattr(case, name)) is not None}
    if case.rounds is not None and source.spec:
        spec = source.spec.to_json()
        given["guest"] = ",".join(
            [str(spec["workload"])]
            + [f"{key}={spec[key]}" for key in ("size", "seed", "fraction", "steps", "rate") if spec[key] is not None]
        )
    if source.qemu:
        given |= {"qmp": source.qemu.qmp, "pid": source.qemu.pid}
    if source.domain:
        given["domain"] = source.domain.name
    return RunOrder(
        way=case.way,
        path=run.path,
        ram=source.ram,
        dirty=case.dirty,
        rounds=case.rounds,
        seed=run.seed + max(run.number, 0),
        trace=trace,
        **given,
    )


def _measured(answer: RunAnswer, wall: float) -> Measured:
    return Measured(
        seconds=Seconds(**answer.seconds, wall=wall),
        bytes=Bytes(**answer.bytes),
        report=None if answer.report is None else dict(answer.report),
        growth=_pairs(answer.growth),
        sequential=_pairs(answer.sequential),
        save_at=_stretch(answer.save_at),
        pause_at=_stretch(answer.pause_at),
    )


def _stretch(pair: tuple[float, float] | None) -> Stretch | None:
    return None if pair is None else (pair[0], pair[1])  # JSON has made a list of it


def _pairs(pairs: list[tuple[int, int]] | None) -> tuple[tuple[int, int], ...] | None:
    return None if pairs is None else tuple((first, second) for first, second in pairs)


def _ram_path(run: Run) -> str:
    (path,) = run.source.ram.values()
    return path


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError.from_os(f"cannot open {path!r}", error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _places(fd: int, size: int) -> Iterator[int]:
    """An offset in every chunk that holds data; reading holes of shared memory does not fill them."""
    for start, end in data_extents(fd, 0, size):
        yield from range(start // _CHUNK * _CHUNK, end, _CHUNK)
