"""A way to capture is one module and one line: a save takes any that keeps to the protocol."""

from collections.abc import Sequence

import numpy as np
import pytest
from support.pictures import saved_picture
from support.saving import Heard, save, several
from support.sources import ScriptedGuest

from parallel_fixedram.core.save_options import CaptureMode, DirectIO
from parallel_fixedram.engine.capture import ways
from parallel_fixedram.engine.capture.capture import Capture
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.verify import verify


class EveryOther(Capture):
    """Writes even pages while the machine stands still and odd ones afterwards: for a machine that waits for us."""

    reserves = False

    def __init__(self, task: Task) -> None:
        self._task = task
        writer = PageWriter(task.guest_blocks, task.blocks, task.ledger, task.buffered, max_gap_pages=0)
        self._job = RoundJob(task.ledger, writer, window_pages=task.choice.window_pages)

    def jobs(self) -> Sequence[Job]:
        return [self._job]

    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        pass

    def stopped(self, run: Coordinator) -> None:
        self._write(run, 0)

    def after(self, run: Coordinator) -> None:
        self._write(run, 1)

    def _write(self, run: Coordinator, first: int) -> None:
        for bitmap in self._task.ledger.dirty:
            bitmap.set_pages(np.arange(first, bitmap.pages, 2))
        run.round(self._job, while_running=first == 1, cached=True)


@pytest.fixture
def _a_new_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ways.WAYS, CaptureMode.STOPPED, EveryOther)  # type: ignore[misc]


@pytest.mark.usefixtures("_a_new_way")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_toy_goes_through_the_whole_save(target: str, channels: int) -> None:
    picture, heard = "AB0-C" * 200, Heard()
    with ScriptedGuest({"ram": picture, "small": "A"}, running=False) as guest:
        report = save(guest, target, several(channels=channels, direct_io=DirectIO.OFF), observer=heard)
    assert saved_picture(target) == picture.replace("0", "-")
    assert saved_picture(target, "small") == "A"
    assert [each.while_running for each in report.rounds] == [False, True]
    assert [each.dirty_pages for each in report.rounds] == [501, 500]
    assert {shard.round for shard in heard.shards} == {0, 1}
    names = [each.name for each in report.phases]
    assert names.index("pause") < names.index("after") < names.index("publish")
    with open_image(target) as image:
        assert verify(image, channels=1).ok


def test_every_way_has_a_name_and_every_name_but_auto_a_way() -> None:
    assert set(ways.WAYS) == set(CaptureMode) - {CaptureMode.AUTO}
