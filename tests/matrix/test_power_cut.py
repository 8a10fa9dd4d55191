"""The power fails at each call of a save on its files, and right after its end, on ext4 and xfs.

What is found when it is back is the old file or the new one; and the new one, if the save had ended with 0.
"""

from __future__ import annotations

import itertools
import os

import pytest
from support import faults
from support.cut_disk import CutDisk, cut_disk
from support.examples import unless_thorough
from support.fault_matrix import Count
from support.faults import Call, Kill, Run
from support.stages import MAIN_WAYS, WAYS, Stage

REASON = faults.why_not() or ("" if os.geteuid() == 0 else "only root can mount a file system")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

ROW = "the power fails at each call"


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("way", unless_thorough(MAIN_WAYS, WAYS))
def test_what_is_there_after_a_power_cut_is_the_old_file_or_the_new_one(kind: str, way: str, count: Count) -> None:
    with cut_disk(kind) as disk:
        stage = Stage(str(disk.folder), WAYS[way])
        for number in itertools.count():
            stage.before_save()
            disk.settle()
            run = save(stage, disk, number)
            there = stage.file.read_bytes() if stage.file.exists() else b""
            if not run.faults:
                break
            assert there in (stage.way.old, stage.new), run.faults
            if number % 8 == 0:
                stage.check_next_save()
        assert run.error is None
        assert there == stage.new, "it had ended with 0"
        assert not stage.part.exists()
    count(ROW, number + 1)


def save(stage: Stage, disk: CutDisk, number: int) -> Run:
    """A save whose power fails at that call on its file, or behind its end if it makes fewer; then power is back."""
    calls = itertools.count()

    def decide(call: Call, run: Run) -> Kill | None:
        if not run.faults and (call.path in stage.ram.values() or next(calls) < number):
            return None
        if not run.faults:
            disk.cut()
        return Kill(run.pidfds)

    run = stage.run(stage.save, decide)
    if not run.faults:
        disk.cut()
    disk.come_back()
    return run
