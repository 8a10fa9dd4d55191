import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.conformance import covered

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.machines.builtin.dirty_log import DirtyLog


def pages_in(bitmap: PageBitmap) -> list[int]:
    return [page for page in range(bitmap.pages) if bitmap.test(page)]


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 200])
def test_what_is_marked_is_fetched_once_and_forgotten(pages: int) -> None:
    log, bitmap = DirtyLog(pages), PageBitmap(pages)
    marked = sorted({0, pages // 2, pages - 1})
    log.mark(np.array(marked))
    assert log.sync([bitmap]) == len(marked)
    assert pages_in(bitmap) == marked
    assert log.sync([PageBitmap(pages)]) == 0
    log.close()


def test_a_large_log_is_read_in_parts_and_each_page_is_where_it_belongs() -> None:
    pages = (3 << 20) + 65
    log, bitmap = DirtyLog(pages), PageBitmap(pages)
    marked = [0, (1 << 20) - 1, 1 << 20, (1 << 20) + 2, 2 << 20, (3 << 20) - 1, pages - 1]
    log.mark(np.array(marked))
    assert log.sync([bitmap]) == len(marked)
    assert covered(bitmap.ranges()) == marked
    assert log.sync([PageBitmap(pages)]) == 0
    log.close()


def test_only_bits_that_were_clear_are_counted_and_none_is_cleared() -> None:
    log, bitmap = DirtyLog(130), PageBitmap(130)
    bitmap.set_range(PageRange(0, 5))
    log.mark(np.array([4, 5, 129]))
    assert log.sync([bitmap]) == 2
    assert pages_in(bitmap) == [0, 1, 2, 3, 4, 5, 129]
    log.close()


@given(st.lists(st.lists(st.integers(0, 199), max_size=20), max_size=6))
def test_a_log_is_a_set_of_pages(rounds: list[list[int]]) -> None:
    log = DirtyLog(200)
    for pages in rounds:
        log.mark(np.array(pages, np.int64))
        bitmap = PageBitmap(200)
        assert log.sync([bitmap]) == len(set(pages))
        assert pages_in(bitmap) == sorted(set(pages))
    log.close()


def test_it_serves_exactly_one_block() -> None:
    log = DirtyLog(1)
    with pytest.raises(ValueError, match="values to unpack"):
        log.sync([PageBitmap(1), PageBitmap(1)])
    log.close()


def test_closing_twice_does_no_harm() -> None:
    log = DirtyLog(1)
    log.close()
    log.close()


def test_a_page_marked_while_the_log_is_read_is_found_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log, first, second = DirtyLog(10), PageBitmap(10), PageBitmap(10)
    look = np.flatnonzero

    def look_and_be_overtaken(seen: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = look(seen)
        log.mark(np.array([1, 2]))
        return found

    log.mark(np.array([1]))
    with monkeypatch.context() as patched:
        patched.setattr(np, "flatnonzero", look_and_be_overtaken)
        log.sync([first])
    log.sync([second])
    assert (pages_in(first), pages_in(second)) == ([1], [2])
    log.close()
