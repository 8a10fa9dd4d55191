"""The dirty log by script."""

import pytest

from parallel_fixedram.core.bitmap import PageBitmap
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
