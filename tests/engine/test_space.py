"""How much space a saved file takes, and which gaps between its pages are filled."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.models import ToldCosts, model
from support.pictures import PAGE
from support.saving import save, several

from parallel_fixedram.core.cost import DeviceModel
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.units import MIB
from parallel_fixedram.engine.pages.reserve import dense_runs
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_files import RamFile, RamFiles


def allocated_bytes(path: str) -> int:
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("direct_io", [DirectIO.ON, DirectIO.OFF])
def test_scattered_pages_take_the_space_of_what_is_there(tmp_path: Path, direct_io: DirectIO) -> None:
    fd = os.memfd_create("scattered")
    os.ftruncate(fd, 16384 * PAGE)
    for page in range(0, 16384, 250):
        os.pwrite(fd, b"x", page * PAGE)
    machine = RamFiles([RamFile(idstr="ram", path=f"/proc/self/fd/{fd}")], name="test")
    with machine:
        save(machine, str(tmp_path / "FILE"), several(direct_io=direct_io))
    os.close(fd)
    assert allocated_bytes(str(tmp_path / "FILE")) < 16384 // 250 * 4 * PAGE + 100 * PAGE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "direct", "gap", "most"),
    [
        # a call costs less than a page: only what is there is written, and space is reserved for no more
        (model(direct={1: (4, 1)}, buffered={1: (1, 0.3)}, stable=(1, 0.3)), False, 0, 34),
        (model(direct={1: (1, 0.3)}, buffered={1: (4, 1)}, stable=(4, 1)), True, 0, 34),
        # a call costs as much as two pages and a half
        (model(direct={1: (100, 10)}, buffered={1: (10, 1)}, stable=(10.25, 1)), False, 2, 58),
        (model(direct={1: (10.25, 1)}, buffered={1: (10, 1)}, stable=(100, 10)), True, 2, 58),
    ],
)
def test_pages_scattered_at_random_are_written_as_the_device_makes_it_worthwhile(
    tmp_path: Path, costs: ToldCosts, device: DeviceModel, direct: bool, gap: int, most: int
) -> None:
    """Half of the pages, in runs of two on average: every fourth gap or so is longer than two pages."""
    costs.model = device
    with GuestProcess(GuestSpec.parse("random,size=64MiB,fraction=0.5")) as guest:
        report = save(guest, str(tmp_path / "FILE"), several())
    (only,) = report.rounds
    assert (report.direct_io, report.choice.gap_pages) == (direct, gap)
    assert report.bytes.written == (only.written_pages + only.gap_pages) * PAGE
    assert (only.gap_pages > 0) == (gap > 0)
    assert report.bytes.written <= report.bytes.allocated < most * MIB
    with Image(str(tmp_path / "FILE")) as image:
        assert verify(image).ok


def test_touched_pages_that_are_zero_take_no_space(tmp_path: Path) -> None:
    fd = os.memfd_create("zeros")
    os.pwrite(fd, bytes(4096 * PAGE), 0)
    machine = RamFiles([RamFile(idstr="ram", path=f"/proc/self/fd/{fd}")], name="test")
    with machine:
        save(machine, str(tmp_path / "FILE"), several())
    os.close(fd)
    assert allocated_bytes(str(tmp_path / "FILE")) < 100 * PAGE


@pytest.mark.parametrize(
    ("ranges", "joined"),
    [
        ([], []),
        ([(0, 1)], [(0, 1)]),
        ([(0, 1), (2, 1)], [(0, 1), (2, 1)]),
        ([(0, 3), (4, 4)], [(0, 8)]),
        ([(0, 3), (5, 4)], [(0, 3), (5, 4)]),
        ([(0, 200), (216, 4)], [(0, 220)]),
        ([(0, 200), (217, 200)], [(0, 200), (217, 200)]),
        ([(0, 3), (4, 4), (9, 30)], [(0, 39)]),
    ],
)
def test_ranges_are_joined_over_short_gaps_while_nearly_all_of_the_result_is_data(
    ranges: list[tuple[int, int]], joined: list[tuple[int, int]]
) -> None:
    found = dense_runs(np.array(ranges, np.int64).reshape(-1, 2), 16)
    assert found.tolist() == [list(each) for each in joined]
