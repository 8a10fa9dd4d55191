"""What a power cut may leave of the writes to a device: crash states, drawn from the log of those that got there.

::

    log:    write  write  FLUSH  write  write | write  FLUSH          | a cut
    state:  -- these two stay --  any of these two, in any order, whole or in part

Whatever was flushed stays. Of what was written since, a device may have kept anything, a part of a write too, but no
part of a sector: that is what disks promise.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support.served_disk import Log, Write

SECTOR = 512


class Cut(NamedTuple):
    """The power fails when so much of the log was written."""

    at: int
    """Entries of the log."""
    kept: Sequence[Write]
    """What is on the device then, besides what the log starts from; later ones over earlier ones."""


def cuts(log: Log, ways: random.Random, each: int) -> Iterator[Cut]:
    """Power cuts behind every entry of a log: all that was written is there, nothing since the last flush, and others.

    Args:
        log: what the device got.
        ways: draws what is kept, in what order, and of which write only a part.
        each: how many states of a cut are drawn, where there is anything to draw.
    """
    stable: list[Write] = []
    pending: list[Write] = []
    for at, entry in enumerate(log, 1):
        if entry is None:
            stable, pending = [*stable, *pending], []
        else:
            pending.append(entry)
        yield Cut(at, [*stable, *pending])
        if pending:
            yield Cut(at, stable)
            for _ in range(each):
                yield Cut(at, [*stable, *_some(pending, ways)])


def _some(pending: Sequence[Write], ways: random.Random) -> list[Write]:
    kept = [each for each in pending if ways.random() < 0.6]
    ways.shuffle(kept)
    return [_torn(each, ways) if ways.random() < 0.3 else each for each in kept]


def _torn(whole: Write, ways: random.Random) -> Write:
    """A run of its sectors."""
    sectors = len(whole.data) // SECTOR
    first = ways.randrange(sectors)
    end = ways.randint(first + 1, sectors)
    return Write(whole.offset + first * SECTOR, whole.data[first * SECTOR : end * SECTOR])


class Base:
    """What a device held when its log started, without its holes.

    Args:
        image: the device as a file.
    """

    def __init__(self, image: Path) -> None:
        fd = os.open(image, os.O_RDONLY)
        self._size, self._data, end = os.fstat(fd).st_size, [], 0
        while (start := _next_data(fd, end)) >= 0:
            end = os.lseek(fd, start, os.SEEK_HOLE)
            self._data.append(Write(start, os.pread(fd, end - start, start)))
        os.close(fd)

    def with_writes(self, image: Path, writes: Sequence[Write]) -> None:
        """Make a file hold that, and these writes on top."""
        fd = os.open(image, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, self._size)
        for each in (*self._data, *writes):
            os.pwrite(fd, each.data, each.offset)
        os.close(fd)


def _next_data(fd: int, start: int) -> int:
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError:  # there is no more
        return -1
