"""Private memory that was protected before it was ever touched looks swapped; it is no data for all that."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
from support.refusing import Refuse
from support.watched import PAGE, Watched, require_userfaultfd, write

from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import pagemap, process_memory
from parallel_fixedram.host.memory.process_memory import ProcessSource

ALL = PageRange(0, 8)


@pytest.fixture
def memory() -> Iterator[Watched]:
    """Eight pages, of which page 2 was touched."""
    require_userfaultfd()
    with Watched(lambda: mmap.mmap(-1, 8 * PAGE, mmap.MAP_PRIVATE)) as watched:
        watched.call(write, 2)
        watched.register()
        yield watched


def test_only_what_was_touched_counts_once_protection_is_known(memory: Watched) -> None:
    source = ProcessSource(memory.pid, memory.start, 8 * PAGE)
    assert source.data_ranges(ALL) == [PageRange(2, 1)]
    memory.protect()
    assert source.data_ranges(ALL) == [ALL], "what this is about"
    source.note_protection()
    assert source.data_ranges(ALL) == [PageRange(2, 1)]
    memory.uffd.unprotect(memory.page(5), PAGE)
    memory.call(write, 5)
    assert source.data_ranges(ALL) == [PageRange(2, 1), PageRange(5, 1)]
    assert source.data_ranges(PageRange(4, 3)) == [PageRange(5, 1)]


def test_it_is_the_same_where_a_kernel_has_only_the_list(memory: Watched, refuse: Refuse) -> None:
    refuse(linux, "pagemap_scan", 25)
    memory.protect()
    assert pagemap.occupied(memory.pid, memory.start, 8, swapped=False).ranges() == [PageRange(2, 1)]
    assert pagemap.occupied(memory.pid, memory.start, 8).ranges() == [ALL]


@pytest.mark.parametrize("counts", [[5, 6], [None, None]])
def test_if_anything_went_to_swap_meanwhile_what_looks_swapped_counts(
    memory: Watched, counts: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "swapped_out", lambda: counts.pop(0))
    source = ProcessSource(memory.pid, memory.start, 8 * PAGE)
    assert source.data_ranges(ALL) == [PageRange(2, 1)]
    memory.protect()
    source.note_protection()
    assert source.data_ranges(ALL) == [ALL]
