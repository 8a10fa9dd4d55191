"""Which pages lie in runs, checked against a loop."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.bitmap import runs_of_ones
from parallel_fixedram.engine.pages.window import covered


@given(st.lists(st.booleans(), max_size=600))
def test_runs_cover_the_pages_they_were_made_of(pages: list[bool]) -> None:
    bits = np.array(pages, np.uint8)
    assert covered(runs_of_ones(bits), len(bits)).tolist() == bits.tolist()


def test_runs_that_touch_cover_both() -> None:
    assert covered(np.array([(0, 2), (2, 1), (5, 1)]), 6).tolist() == [1, 1, 1, 0, 0, 1]
