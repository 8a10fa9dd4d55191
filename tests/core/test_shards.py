import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.shards import MAX_SHARD_PAGES, MIN_SHARD_PAGES, Shard, plan_shards, shard_pages

MIB = 1 << 20


def bitmap_with(pages, ranges):
    bitmap = PageBitmap(pages)
    for first, count in ranges:
        first = first % pages if pages else 0
        bitmap.set_range(PageRange(first, min(count, pages - first)))
    return bitmap


ranges = st.lists(st.tuples(st.integers(0, 40000), st.integers(1, 3000)), max_size=12)
bitmaps = st.lists(
    st.builds(bitmap_with, st.sampled_from([1, 63, 64, 65, 130]) | st.integers(1, 40000), ranges), max_size=4
)


def pages_of(bitmap, shard):
    bits = bitmap.bits(shard.first_word, shard.words)
    return [(shard.block, shard.first_word * 64 + page) for page in np.flatnonzero(bits).tolist()]


@given(bitmaps, st.integers(1, 20), st.integers(0, 5))
def test_every_dirty_page_is_in_exactly_one_shard(dirty, workers, number):
    shards = plan_shards(dirty, workers=workers, round_number=number)
    found = [page for shard in shards for page in pages_of(dirty[shard.block], shard)]
    expected = [(block, page) for block, bitmap in enumerate(dirty) for run in bitmap.ranges()
                for page in range(run.first, run.end)]  # fmt: skip
    assert sorted(found) == expected
    assert [shard.pages for shard in shards] == [len(pages_of(dirty[shard.block], shard)) for shard in shards]
    assert {shard.round for shard in shards} <= {number}


@given(bitmaps, st.integers(1, 20))
def test_no_two_shards_share_a_word_and_none_has_empty_ends(dirty, workers):
    taken = set()
    for shard in plan_shards(dirty, workers=workers):
        words = {(shard.block, word) for word in range(shard.first_word, shard.first_word + shard.words)}
        assert not words & taken
        taken |= words
        own = dirty[shard.block].words[shard.first_word : shard.first_word + shard.words]
        assert len(own) == shard.words >= 1
        assert own[0] != 0 != own[-1]


@given(bitmaps, st.integers(1, 20))
def test_shards_come_in_the_order_of_pages_and_none_is_much_larger_than_wanted(dirty, workers):
    shards = plan_shards(dirty, workers=workers)
    assert shards == sorted(shards, key=lambda shard: (shard.block, shard.first_word))
    sizes = [shard.pages for shard in shards]
    wanted = shard_pages(sum(bitmap.count() for bitmap in dirty), workers)
    assert max(sizes, default=0) < wanted + 64


@given(bitmaps, st.integers(1, 8), st.sampled_from((1, 63, 64, 65, 256, 1000, 16384, 10**9)))
def test_shards_are_about_as_large_as_asked_for(dirty, workers, target):
    """Cut at words: a shard has fewer pages than asked for and one word more, and only the end of a block less."""
    shards = plan_shards(dirty, workers=workers, target=target)
    found = [page for shard in shards for page in pages_of(dirty[shard.block], shard)]
    assert len(found) == len(set(found)) == sum(bitmap.count() for bitmap in dirty)
    assert all(shard.pages < target + 64 for shard in shards)
    for block, bitmap in enumerate(dirty):
        own = sum(shard.block == block for shard in shards)
        assert own <= -(-bitmap.count() // target)
        assert own >= bitmap.count() // (target + 63)


@given(bitmaps, st.integers(1, 8))
def test_without_a_wish_shards_suit_any_kind_of_work(dirty, workers):
    wanted = shard_pages(sum(bitmap.count() for bitmap in dirty), workers)
    assert plan_shards(dirty, workers=workers) == plan_shards(dirty, workers=1, target=wanted)


@given(bitmaps, st.integers(1, 8), st.randoms(use_true_random=False))
def test_shards_can_be_done_in_any_order(dirty, workers, random):
    shards = plan_shards(dirty, workers=workers)
    random.shuffle(shards)
    left = [PageBitmap(bitmap.pages, bitmap.words.copy()) for bitmap in dirty]
    for shard in shards:
        assert len(pages_of(left[shard.block], shard)) == shard.pages, "an earlier shard took some of its pages"
        left[shard.block].words[shard.first_word : shard.first_word + shard.words] = 0
    assert not any(bitmap.count() for bitmap in left)


@given(bitmaps, st.integers(1, 8))
def test_the_same_bitmaps_give_the_same_plan_and_stay_as_they_are(dirty, workers):
    before = [bitmap.to_bytes() for bitmap in dirty]
    assert plan_shards(dirty, workers=workers) == plan_shards(dirty, workers=workers)
    assert [bitmap.to_bytes() for bitmap in dirty] == before


@pytest.mark.parametrize("pages", [0, 1, 63, 64, 65])
def test_a_small_block_is_one_shard_and_none_when_it_is_clean(pages):
    bitmap = PageBitmap(pages)
    assert plan_shards([bitmap], workers=4) == []
    bitmap.set_all()
    expected = [Shard(0, 0, len(bitmap.words), pages)] if pages else []
    assert plan_shards([bitmap], workers=4) == expected


def test_nothing_at_all_is_no_shard():
    assert plan_shards([], workers=1) == []


def test_two_blocks_are_never_in_one_shard():
    small, large = PageBitmap(1), PageBitmap(100)
    small.set_all()
    large.set_all()
    assert plan_shards([small, large], workers=1) == [Shard(0, 0, 1, 1), Shard(1, 0, 2, 100)]


@pytest.mark.parametrize("pages", [1, MIN_SHARD_PAGES, 10 * MAX_SHARD_PAGES, 1 << 28])
@pytest.mark.parametrize("workers", [1, 2, 16, 255])
def test_a_shard_is_neither_too_small_nor_too_large(pages, workers):
    assert MIN_SHARD_PAGES <= shard_pages(pages, workers) <= MAX_SHARD_PAGES


def test_each_worker_gets_several_shards_of_a_large_block():
    bitmap = PageBitmap(1 << 16)
    bitmap.set_all()
    assert len(plan_shards([bitmap], workers=4)) >= 4 * 8


def test_planning_a_tebibyte_with_one_percent_dirty_takes_less_than_256_mib():
    pages = (1 << 40) // 4096
    tracemalloc.start()
    try:
        bitmap = PageBitmap(pages)
        random = np.random.default_rng(1)
        for _ in range(16):  # in pieces, so that what is measured is the planning
            bitmap.set_pages(random.integers(0, pages, pages // 1600))
        shards = plan_shards([bitmap], workers=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(shard.pages for shard in shards) == bitmap.count() > pages // 101
    assert peak < 256 * MIB


@pytest.mark.slow
def test_planning_a_whole_tebibyte_takes_less_than_256_mib():
    bitmap = PageBitmap((1 << 40) // 4096)
    bitmap.set_all()
    tracemalloc.start()
    try:
        shards = plan_shards([bitmap], workers=16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(shard.pages for shard in shards) == bitmap.pages
    assert peak + bitmap.words.nbytes < 256 * MIB
