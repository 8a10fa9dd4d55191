"""A save of ours as it is measured: what comes before its time, and the dirty log by script."""

import pytest

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.experiments.fresh_process import RunOrder
from parallel_fixedram.experiments.ways import saving
from parallel_fixedram.experiments.ways.saving import DirtyOnce


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 1000])
def test_a_share_of_the_pages_is_dirty_when_asked_the_second_time_and_never_again(pages):
    dirty = DirtyOnce(0.5, 7)
    first, second, third = ([PageBitmap(pages)] for _ in range(3))
    assert dirty.sync(first) == 0
    assert dirty.sync(second) == second[0].count() == round(pages * 0.5) == dirty.marked
    assert dirty.sync(third) == 0


def test_which_pages_depends_on_the_seed_alone():
    def marked(seed):
        bitmap = PageBitmap(500)
        dirty = DirtyOnce(0.3, seed)
        dirty.sync([bitmap])
        dirty.sync([bitmap])
        return bitmap.to_bytes()

    assert marked(1) == marked(1)
    assert marked(1) != marked(2)


@pytest.mark.parametrize("calibrates", [True, False])
def test_what_writes_cost_is_measured_anew_before_the_save_and_not_within_its_time(tmp_path, costs, calibrates):
    (tmp_path / "ram").write_bytes(b"x" * 4096 * 64)
    order = RunOrder(
        way="ours",
        path=str(tmp_path / "file"),
        ram={"ram": str(tmp_path / "ram")},
        direct_io="auto",
        calibrate=calibrates,
    )
    answer = saving.measure(order, lambda _: None)
    anew = [(str(tmp_path), 0, True)] * calibrates
    assert costs.asked == [*anew, (str(tmp_path), 4096 * 64, False)]  # the save itself asks for what is known
    assert answer.report["choice"]["measured_by_predicted"] > 0
