"""The power fails at any write to the device, and of what was not flushed anything may be there, in any order, torn.

Each state is mounted, its journal replayed. What is found is the old file or the new one; and the new one, if the save
had ended with 0 by then.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from support.crash_states import Base, Cut, cuts
from support.cut_disk import CutDisk, loop_device
from support.examples import seed, thorough
from support.served_disk import Log, served_disk
from support.stages import MAIN_WAYS, WAYS, Count, Stage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")]

ROW = "the power fails, block by block"
STATES = {"ext4": 240, "xfs": 96}
"""Of each way to save; one of xfs takes six times as long."""


class Logged:
    """A save, and what of it got to the device."""

    def __init__(self, kind: str, way: str) -> None:
        with served_disk(kind) as disk:
            self.folder = disk.folder
            self.stage = Stage(str(disk.folder), WAYS[way])
            self.stage.before_save()
            disk.settle()
            self.base, start = Base(disk.image), disk.logged()
            self.stage.save()
            saved = disk.logged()
            (disk.folder / "another").write_bytes(b"and life goes on" * 4096)
            disk.settle()
            self.log: Log = disk.log(start, disk.logged())
            self.ended = len(disk.log(start, saved))
            """How many entries of the log there were when the save had ended with 0."""


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("way", MAIN_WAYS)
def test_what_is_there_after_a_power_cut_is_the_old_file_or_the_new_one(kind: str, way: str, count: Count) -> None:
    logged, wanted = Logged(kind, way), STATES[kind] * (10 if thorough() else 1)
    assert logged.ended > 3, "the save has written to the device, and flushed that"
    states = drawn(logged.log, wanted, random.Random(f"{seed()} {kind} {way}"))
    assert any(each.at >= logged.ended for each in states)
    logged.folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="crash-", dir="/dev/shm") as top:
        image = Path(top, "image")
        logged.base.with_writes(image, [])
        with loop_device(image) as device:
            for number, cut in enumerate(states):
                logged.base.with_writes(image, cut.kept)
                disk = CutDisk(device, kind, logged.folder)
                try:
                    check(logged, cut, next_save=number % 50 == 0)
                finally:
                    disk.unmount()
    logged.folder.rmdir()
    logged.folder.parent.rmdir()
    count(ROW, len(states))


def drawn(log: Log, wanted: int, ways: random.Random) -> list[Cut]:
    """So many states, of all cuts about as many each."""
    each = 0
    while len(found := list(cuts(log, ways, each))) < wanted:
        each += 1
    return [found[number * (len(found) - 1) // (wanted - 1)] for number in range(wanted)]


def check(logged: Logged, cut: Cut, *, next_save: bool) -> None:
    stage = logged.stage
    there = stage.file.read_bytes() if stage.file.exists() else b""
    told = f"cut at {cut.at} of {len(logged.log)}, the save ended at {logged.ended}"
    if cut.at >= logged.ended:
        assert there == stage.new, told
    assert there in (stage.way.old, stage.new), told
    if next_save:
        stage.check_next_save()
