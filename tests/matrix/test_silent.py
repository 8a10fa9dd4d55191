"""Storage that lies: a bit flips, a write is lost or goes elsewhere, and nobody says so, during a save and afterwards.

A verification of the file says which block, which pages, and where in the file.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

import pytest
from support import faults
from support.damage import flip
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.faults import Call, Decide, Lie, Run
from support.stages import WAYS, Stage, in_turn

import parallel_fixedram
from parallel_fixedram.core.errors import FormatError, HostError
from parallel_fixedram.core.reports.difference import Difference

REASON = faults.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

PAGE = 4096
SETS = 16
"""Every page is damaged together with every sixteenth other one."""
TOGETHER, RANDOM = 10, 10_000 if thorough() else 1000


@pytest.fixture
def stage() -> Iterator[Stage]:
    folder = tempfile.mkdtemp(prefix="silent-", dir="/dev/shm")
    yield Stage(folder, WAYS["a new file"])
    shutil.rmtree(folder)


def found(stage: Stage) -> Sequence[Difference] | None:
    """What a verification reports; None if it refuses the file for what its head says."""
    try:
        report = parallel_fixedram.verify(stage.uri, channels=1)
    except FormatError:
        return None
    assert report.ok is not report.differences or report.stale_pages
    assert not report.truncated
    return report.differences


def is_named(offset: int, differences: Sequence[Difference]) -> bool:
    """Whether one of them has a byte of the file."""
    return any(
        each.offset is not None and each.offset <= offset < each.offset + each.pages * PAGE for each in differences
    )


def test_a_bit_of_any_page_that_flips_is_found_in_that_page(stage: Stage, count: Count) -> None:
    blocks = parallel_fixedram.inspect(stage.uri).blocks
    pages = [(block.idstr, page, block.pages_offset + page * PAGE) for block in blocks for page in range(block.pages)]
    where = random.Random(seed())
    for first in range(SETS):
        damaged = pages[first::SETS]
        bits = [offset + where.randrange(PAGE) for _, _, offset in damaged]
        for bit in bits:
            flip(stage.file, bit)
        differences = found(stage)
        for bit in bits:
            flip(stage.file, bit)
        assert differences is not None
        reported = {
            (each.idstr, each.first_page + page, (each.offset or 0) + page * PAGE)
            for each in differences
            if each.first_page is not None
            for page in range(each.pages)
        }
        assert reported == set(damaged)
    assert found(stage) == ()
    count("a bit flips, a write is lost or goes elsewhere", len(pages))


def test_a_bit_of_any_byte_that_flips_is_found(stage: Stage, count: Count) -> None:
    where, size = random.Random(seed() + 1), stage.file.stat().st_size
    blocks = parallel_fixedram.inspect(stage.uri).blocks
    areas = [range(block.pages_offset, block.pages_offset + block.used_length) for block in blocks]
    for _ in range(RANDOM // TOGETHER):
        bits = sorted({where.randrange(size) for _ in range(TOGETHER)})
        for bit in bits:
            flip(stage.file, bit)
        differences = found(stage)
        for bit in bits:
            flip(stage.file, bit)
        assert differences is None or differences, bits
        for bit in bits:
            if differences is not None and any(bit in area for area in areas):
                assert is_named(bit, differences), hex(bit)
    count("a bit flips, a write is lost or goes elsewhere", RANDOM)


def lost(data: bytes, offset: int) -> list[tuple[bytes, int]]:
    return []


def flipped(data: bytes, offset: int) -> list[tuple[bytes, int]]:
    at = len(data) // 2
    return [(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], offset)]


def a_page_off(data: bytes, offset: int) -> list[tuple[bytes, int]]:
    return [(data, offset + PAGE)]


@pytest.mark.parametrize("way", [way for way in WAYS if "direct" not in way])  # whose writes are no call on a file
@pytest.mark.parametrize("wrong", [lost, flipped, a_page_off])
def test_a_save_whose_writes_go_wrong_unnoticed_is_found_out_by_verify(
    stage: Stage, way: str, wrong: Callable[[bytes, int], list[tuple[bytes, int]]], count: Count
) -> None:
    stage = Stage(stage.folder, WAYS[way])

    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        assert run.error is None or isinstance(run.error, HostError), (run.faults, run.error)
        theirs = bool(run.faults) and run.faults[0].args[3] < stage.way.offset  # the prefix is copied, not known
        if run.error is None and not theirs and stage.file.read_bytes() != stage.new:
            differences = found(stage)
            assert differences is None or differences, run.faults
        return run

    def answer(call: Call, run: Run) -> Lie:
        return Lie(wrong)

    done = in_turn(attempt, answer, names={"pwrite64"}, every_site=True)
    count("a bit flips, a write is lost or goes elsewhere", done)
