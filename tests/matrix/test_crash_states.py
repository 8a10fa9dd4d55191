"""The power fails at any write to the device, and of what was not flushed anything may be there, in any order, torn.

Each state is mounted, its journal replayed. What is found is the old file or the new one; and the new one, if the save
had ended with 0 by then. A file that gets a trailer in place has none, or all of it.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.crash_states import Base, Cut, cuts
from support.cut_disk import CutDisk, loop_device
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.prepared_file import Prepared
from support.served_disk import Log, ServedDisk, served_disk
from support.stages import MAIN_WAYS, WAYS, Stage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")]

ROW = "the power fails, block by block"
STATES = {"ext4": 240, "xfs": 96}
"""Of each way to save; one of xfs takes six times as long."""


class Logged:
    """What of a change to files got to the device.

    Args:
        disk: where they are; everything on it is on stable storage before.
        change: what is done.
    """

    def __init__(self, disk: ServedDisk, change: Callable[[], object]) -> None:
        disk.settle()
        self._base, start, self._folder = Base(disk.image), disk.logged(), disk.folder
        change()
        changed = disk.logged()
        (disk.folder / "another").write_bytes(b"and life goes on" * 4096)
        disk.settle()
        self._log: Log = disk.log(start, disk.logged())
        self._ended = len(disk.log(start, changed))
        assert self._ended > 3, "it has written to the device, and flushed that"

    def states(self, kind: str, wanted: int, ways: random.Random) -> Iterator[bool]:
        """Mounts that many states, where the disk was; whether the change had ended with 0 by then."""
        found = drawn(self._log, wanted, ways)
        assert any(each.at >= self._ended for each in found)
        self._folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="crash-", dir="/dev/shm") as top:
            image = Path(top, "image")
            self._base.with_writes(image, [])
            with loop_device(image) as device:
                for cut in found:
                    self._base.with_writes(image, cut.kept)
                    disk = CutDisk(device, kind, self._folder)
                    try:
                        yield cut.at >= self._ended
                    finally:
                        disk.unmount()
        self._folder.rmdir()
        self._folder.parent.rmdir()


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("way", MAIN_WAYS)
def test_what_is_there_after_a_power_cut_is_the_old_file_or_the_new_one(kind: str, way: str, count: Count) -> None:
    wanted = STATES[kind] * (10 if thorough() else 1)
    with served_disk(kind) as disk:
        stage = Stage(str(disk.folder), WAYS[way])
        stage.before_save()
        logged = Logged(disk, stage.save)
    for number, ended in enumerate(logged.states(kind, wanted, random.Random(f"{seed()} {kind} {way}"))):
        there = stage.file.read_bytes() if stage.file.exists() else b""
        assert there in ((stage.new,) if ended else (stage.way.old, stage.new)), number
        if number % 50 == 0:
            stage.check_next_save()
    count(ROW, wanted)


def test_a_file_that_got_a_trailer_in_place_has_none_after_a_power_cut_or_all_of_it(count: Count) -> None:
    wanted = STATES["ext4"] // 2 * (10 if thorough() else 1)
    with served_disk("ext4") as disk:
        file = Prepared(disk.folder, "A0C." * 70)
        logged = Logged(disk, file.add)
    for ended in logged.states("ext4", wanted, random.Random(f"{seed()} in place")):
        assert not ended or file.has_trailer()
        file.check_added()
    count(ROW, wanted)


def drawn(log: Log, wanted: int, ways: random.Random) -> list[Cut]:
    """So many states, of all cuts about as many each."""
    each = 0
    while len(found := list(cuts(log, ways, each))) < wanted:
        each += 1
    return [found[number * (len(found) - 1) // (wanted - 1)] for number in range(wanted)]
