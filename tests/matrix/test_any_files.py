"""Any files: whole files, altered, through all that reads one: open, inspect, verify, restore, a clone's checks.

With digests every byte that is another one is found. Without, and where whoever altered a file made the digests fit,
what is accepted is what a second reader finds there. Work of workers is done in the process itself, so that tens of
thousands of files are a matter of seconds.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self
from unittest.mock import patch

import pytest
from support.cli import call
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.limits import Noted, limited
from support.mutants import Template, mutant, resealed
from support.parsers import IMAGES, STREAMS
from support.second_reader import check_stream, contents

import parallel_fixedram
from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.plan import find_clone_stream, main_blocks, state_of
from parallel_fixedram.boot.recorded_disks import refuse_written
from parallel_fixedram.core.errors import FixedRamError, FormatError, RequestError
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.workers.messages import ShardDone, Tally
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.processes import signals
from parallel_fixedram.image import compare, restore, verify
from parallel_fixedram.image.image import Image

pytestmark = pytest.mark.slow

BATCH = 2500
BATCHES = 200 if thorough() else 40
FILES = [*STREAMS, *IMAGES]
HOLES = (1 << 20, 1 << 32)
"""How much of a hole may follow a file, bytes."""
MOST_READ = 3 << 20
"""Bytes that are read of a head, besides a few times what there is: of a hole hardly any."""
MOST_RAM = 1 << 20
"""Bytes of a block that is restored, and compared byte by byte."""
_BYTES_AT = FileChannel.bytes_at
BACKEND = ("-object", "memory-backend-ram,id=m,size=32768")


class Inline:
    """A pool of workers without workers."""

    def __init__(self, jobs: Sequence[Job], count: int, *, stall_seconds: float = 0.0) -> None:
        self._jobs = jobs
        self.workers = range(count)

    def __enter__(self) -> Self:
        for job in self._jobs:
            job.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, job: int, shards: Sequence[Shard], on_done: Callable[[ShardDone, int], None] | None = None) -> Tally:
        total = Tally()
        for shard in shards:
            total.add(self._jobs[job].run(shard))
        return total


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for module in (compare, restore, verify):
        monkeypatch.setattr(module, "WorkerPool", Inline)
    monkeypatch.setattr(signals, "held", nullcontext)  # nobody sends any, and to hold them takes long
    with TemporaryDirectory(prefix="any-files-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_an_altered_file_is_what_a_second_reader_finds_or_is_refused(folder: Path, batch: int, count: Count) -> None:
    def work(noted: Noted) -> Counter[str]:
        draw, file, outcomes = random.Random(f"{seed()} {batch}"), File(folder), Counter[str]()
        for template in FILES:
            file.write(template.data)
            assert file.check(template) == "accepted"
        for number in range(BATCH):
            template, script = draw.choice(FILES), draw.randbytes(1 + draw.randrange(24))
            noted(f"{FILES.index(template)} {script.hex()}".encode())
            data, sealed = mutant(template, script), draw.randrange(3) == 0
            file.write(resealed(data) if sealed else data, hole=draw.choice(HOLES) if number % 20 == 0 else 0)
            outcome = file.check(None if sealed else template)
            if outcome != "refused" and number % 20 == 1:
                assert call("inspect", file.path).code in (0, 3)
            outcomes[outcome] += 1
        assert os.listdir(folder) == [file.path.name]
        return outcomes

    outcomes = limited(work, seconds=300)
    assert outcomes.keys() == {"refused", "found to be damaged", "accepted"}, outcomes
    for outcome in outcomes:
        count(f"any files: {outcome}", outcomes[outcome])


class File:
    """A file that is altered again and again, and what is made of it.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "file"
        self.data = b""

    def write(self, data: bytes, *, hole: int = 0) -> None:
        """Be these bytes, and so many zeros."""
        self.data = data
        with self.path.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + hole)

    def check(self, template: Template | None) -> str:
        """Hold everything that reads it against what is there; returns what became of it.

        Args:
            template: of which the file has the digests; None where they are its own.
        """
        try:
            image = self._opened()
        except FormatError:
            with suppress(FixedRamError):
                parallel_fixedram.inspect(str(self.path))
            return "refused"
        with image:
            check_stream(self.data, image.file)
            with suppress(FixedRamError):
                parallel_fixedram.inspect(str(self.path))
            with suppress(FixedRamError):
                self._clone(image)
            try:
                found = verify.verify(image)
            except FixedRamError:
                return "refused"
            if found.ok and found.digests and template:
                assert self.data.rstrip(b"\0") == template.data.rstrip(b"\0"), "nobody sees what is another byte"
            self._restore(image, sound=found.ok)
            if found.ok:
                with suppress(RequestError):  # nothing is stored of any block
                    assert compare.diff(image, image, channels=1).equal
            return "accepted" if found.ok else "found to be damaged"

    def _opened(self) -> Image:
        """The image, for which no more was read than a few times what there is."""
        given: list[int] = []

        def bytes_at(channel: FileChannel, offset: int, length: int) -> bytes:
            given.append(len(data := _BYTES_AT(channel, offset, length)))
            return data

        with patch.object(FileChannel, "bytes_at", bytes_at):
            try:
                return Image(str(self.path))
            finally:
                assert sum(given) < 4 * len(self.data) + MOST_READ

    def _restore(self, image: Image, *, sound: bool) -> None:
        """Into new files, which hold what the file says, or are not there."""
        if any(saved.block.used_length > MOST_RAM for saved in image.blocks) or not image.blocks:
            return
        to = {saved.block.idstr: self.path.with_name(f"{number}.ram") for number, saved in enumerate(image.blocks)}
        places = {idstr: restore.Destination(path=str(path)) for idstr, path in to.items()}
        try:
            restore.restore(image, places, check_digests=image.file.trailer is not None)
        except FixedRamError:
            assert not sound
            assert not any(path.exists() for path in to.values())
            return
        for saved in image.blocks:
            path = to[saved.block.idstr]
            assert path.read_bytes() == contents(self.data, saved)
            path.unlink()

    def _clone(self, image: Image) -> None:
        """All that is asked of a file before a QEMU is started on it."""
        line = CommandLine.parse(["qemu-system-x86_64", "-m", "32768B", "-machine", "memory-backend=m", *BACKEND])
        with ExitStack() as stack:
            state_of(image)
            main = main_blocks(image, line)
            find_clone_stream(image, main, stack)
            refuse_written(image.disks)
