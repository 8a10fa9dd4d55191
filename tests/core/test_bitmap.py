import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parallel_fixedram.core import bitmap as module
from parallel_fixedram.core.bitmap import PageBitmap, bitmap_bytes, runs_of_ones, tail_mask, words_for
from parallel_fixedram.core.ramblock import PageRange

SIZES = [0, 1, 63, 64, 65, 127, 128, 130, 200]
sizes = st.sampled_from(SIZES) | st.integers(0, 400)


@st.composite
def pictures(draw):
    """Bits as a list of booleans: the naive twin of a bitmap."""
    pages = draw(sizes)
    runs = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=12))
    bits = [bit for bit, length in runs for _ in range(length)]
    return (bits + [False] * pages)[:pages]


def bitmap_of(bits):
    bitmap = PageBitmap(len(bits))
    bitmap.set_pages(np.flatnonzero(bits))
    return bitmap


def bits_of(bitmap):
    assert bitmap.words.dtype == np.uint64
    assert int.from_bytes(bitmap.to_bytes(), "little") >> bitmap.pages == 0, "a bit that stands for no page is set"
    return [bitmap.test(page) for page in range(bitmap.pages)]


def runs_of(bits, value):
    found, start = [], None
    for page, bit in enumerate([*bits, not value]):
        if bit == value and start is None:
            start = page
        elif bit != value and start is not None:
            found.append(PageRange(start, page - start))
            start = None
    return found


@pytest.mark.parametrize(("pages", "words"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_a_bitmap_is_whole_words(pages, words):
    assert words_for(pages) == words
    assert bitmap_bytes(pages) == 8 * words
    assert len(PageBitmap(pages).words) == words
    assert PageBitmap(pages).to_bytes() == bytes(8 * words)


@pytest.mark.parametrize(
    ("pages", "mask"), [(1, 1), (63, 2**63 - 1), (64, 2**64 - 1), (65, 1), (130, 3), (4096 + 32, 2**32 - 1)]
)
def test_the_tail_mask_has_the_bits_of_the_last_word(pages, mask):
    assert tail_mask(pages) == mask


def test_the_bitmap_of_the_worked_example_says_which_pages_are_there():
    present = {0, 6, *range(16, 22), 31, 32}
    data = bytes.fromhex("41 00 3f 80 01 00 00 00")
    bitmap = PageBitmap.from_bytes(data, 64)
    assert {page for page in range(64) if bitmap.test(page)} == present
    assert PageBitmap.from_bytes(bytes.fromhex("07 00 00 00 00 00 00 00"), 32).ranges() == [PageRange(0, 3)]
    twin = PageBitmap(64)
    twin.set_pages(np.array(sorted(present)))
    assert twin.to_bytes() == data


def test_page_i_is_bit_i_of_byte_i_8():
    for page in range(130):
        bitmap = PageBitmap(130)
        bitmap.set_pages(np.array([page]))
        assert bitmap.to_bytes() == (1 << page).to_bytes(24, "little")


@given(pictures())
def test_a_bitmap_goes_to_bytes_and_back(bits):
    data = sum(1 << page for page, bit in enumerate(bits) if bit).to_bytes(bitmap_bytes(len(bits)), "little")
    assert bitmap_of(bits).to_bytes() == data
    assert bits_of(PageBitmap.from_bytes(data, len(bits))) == bits


@pytest.mark.parametrize("pages", SIZES)
def test_bits_behind_the_last_page_are_dropped_when_read(pages):
    bitmap = PageBitmap.from_bytes(b"\xff" * bitmap_bytes(pages), pages)
    assert bits_of(bitmap) == [True] * pages
    assert bitmap.count() == pages


@pytest.mark.parametrize("pages", SIZES)
def test_all_and_none_are_set_exactly(pages):
    bitmap = PageBitmap(pages)
    assert (bitmap.count(), bitmap.ranges()) == (0, [])
    assert bitmap.gaps() == ([PageRange(0, pages)] if pages else [])
    bitmap.set_all()
    assert bits_of(bitmap) == [True] * pages
    assert bitmap.ranges() == ([PageRange(0, pages)] if pages else [])
    assert bitmap.gaps() == []


@pytest.mark.parametrize("words", [np.zeros(1, np.uint64), np.zeros(2, np.int64), np.zeros((2, 1), np.uint64)])
def test_words_of_another_shape_or_type_are_refused(words):
    with pytest.raises(ValueError, match="65 pages need 2 uint64 words"):
        PageBitmap(65, words)


def test_a_bitmap_works_in_the_words_it_is_given():
    words = np.zeros(2, np.uint64)
    PageBitmap(65, words).set_range(PageRange(63, 2))
    assert words.tolist() == [1 << 63, 1]


@given(pictures(), st.data())
def test_setting_a_range_sets_its_bits_and_no_other(bits, data):
    first = data.draw(st.integers(0, len(bits)))
    count = data.draw(st.integers(0, len(bits) - first))
    bitmap = bitmap_of(bits)
    bitmap.set_range(PageRange(first, count))
    assert bits_of(bitmap) == [bit or first <= page < first + count for page, bit in enumerate(bits)]


@pytest.mark.parametrize("pages", [PageRange(-1, 1), PageRange(0, 66), PageRange(65, 1), PageRange(64, 2)])
def test_a_range_outside_is_refused(pages):
    bitmap = PageBitmap(65)
    with pytest.raises(ValueError, match="outside"):
        bitmap.set_range(pages)
    assert bitmap.count() == 0


@given(pictures(), st.data())
def test_setting_pages_in_any_order_and_more_than_once_sets_them(bits, data):
    pages = data.draw(st.lists(st.integers(0, len(bits) - 1))) if bits else []
    bitmap = bitmap_of(bits)
    bitmap.set_pages(np.array(pages, np.int64))
    assert bits_of(bitmap) == [bit or page in pages for page, bit in enumerate(bits)]


@pytest.mark.parametrize("page", [-1, 65, 127])
def test_setting_a_page_that_is_not_there_is_refused(page):
    bitmap = PageBitmap(65)
    with pytest.raises(ValueError, match="outside"):
        bitmap.set_pages(np.array([0, page]))
    assert bitmap.count() == 0


@given(pictures())
def test_the_count_is_the_number_of_bits(bits):
    assert bitmap_of(bits).count() == sum(bits)


@given(pictures(), st.data())
def test_adding_says_how_many_bits_are_new(bits, data):
    other = data.draw(st.lists(st.booleans(), min_size=len(bits), max_size=len(bits)))
    bitmap, added = bitmap_of(bits), bitmap_of(other)
    assert bitmap.add(added) == sum(new and not old for old, new in zip(bits, other, strict=True))
    assert bits_of(bitmap) == [a or b for a, b in zip(bits, other, strict=True)]
    assert bits_of(added) == other
    assert bitmap.add(added) == 0


@given(pictures(), pictures())
def test_and_and_andnot_on_the_words_are_and_and_andnot_of_pages(bits, other):
    pages = min(len(bits), len(other))
    one, two = bitmap_of(bits[:pages]), bitmap_of(other[:pages])
    pairs = list(zip(bits, other, strict=False))
    assert bits_of(PageBitmap(pages, one.words & two.words)) == [a and b for a, b in pairs]
    assert bits_of(PageBitmap(pages, one.words & ~two.words)) == [a and not b for a, b in pairs]


@given(pictures())
@example([True] * 65 + [False] * 62 + [True])
def test_ranges_and_gaps_are_the_maximal_runs(bits):
    bitmap = bitmap_of(bits)
    assert bitmap.ranges() == runs_of(bits, True)
    assert bitmap.gaps() == runs_of(bits, False)
    assert bitmap.runs().tolist() == [[run.first, run.count] for run in runs_of(bits, True)]
    assert (bitmap.runs().dtype, bitmap.runs().shape[1]) == (np.int64, 2)
    assert bits_of(bitmap) == bits


@given(st.data(), pictures(), st.sampled_from((1, 2, 64)), st.integers(1, 4))
def test_many_ranges_are_set_as_one_after_the_other(data, bits, many, chunk_words):
    """Whatever was set before stays, and the ranges come in any order."""
    before = data.draw(st.lists(st.booleans(), min_size=len(bits), max_size=len(bits)))
    ranges = data.draw(st.permutations(runs_of(bits, True)))
    twin, bitmap = bitmap_of(before), bitmap_of(before)
    for each in ranges:
        twin.set_range(each)
    kept, (module._MANY_RANGES, module._CHUNK_WORDS) = (module._MANY_RANGES, module._CHUNK_WORDS), (many, chunk_words)
    try:
        bitmap.set_ranges(ranges)
    finally:
        module._MANY_RANGES, module._CHUNK_WORDS = kept
    assert bitmap.to_bytes() == twin.to_bytes()


@pytest.mark.parametrize("outside", [PageRange(-1, 1), PageRange(300, 1), PageRange(299, 2)])
@pytest.mark.parametrize("others", [0, 100])
def test_ranges_outside_are_refused_however_many_there_are(outside, others):
    bitmap = PageBitmap(300)
    with pytest.raises(ValueError, match="outside a bitmap of 300 pages"):
        bitmap.set_ranges([outside, *(PageRange(2 * number, 1) for number in range(others))])
    assert bitmap.count() == 0


@given(pictures(), st.integers(1, 4))
def test_a_run_that_crosses_chunks_is_one_run(bits, chunk_words):
    before, module._CHUNK_WORDS = module._CHUNK_WORDS, chunk_words
    try:
        assert bitmap_of(bits).ranges() == runs_of(bits, True)
        assert bitmap_of(bits).gaps() == runs_of(bits, False)
    finally:
        module._CHUNK_WORDS = before


def test_a_run_that_crosses_the_real_chunk_is_one_run():
    edge = (1 << 16) * 64
    bitmap = PageBitmap(edge + 65)
    bitmap.set_range(PageRange(edge - 3, 60))
    assert bitmap.ranges() == [PageRange(edge - 3, 60)]


@given(pictures(), st.data())
def test_bits_of_words_are_the_bits_of_their_pages(bits, data):
    first = data.draw(st.integers(0, words_for(len(bits))))
    words = data.draw(st.integers(0, words_for(len(bits)) - first + 1))
    found = bitmap_of(bits).bits(first, words)
    assert found.dtype == np.uint8
    assert found.tolist() == bits[first * 64 : (first + words) * 64]


@given(pictures(), st.data())
def test_page_bits_are_the_bits_from_a_word_on(bits, data):
    first = 64 * data.draw(st.integers(0, len(bits) // 64))
    count = data.draw(st.integers(0, len(bits) - first))
    assert bitmap_of(bits).page_bits(first, count).tolist() == bits[first : first + count]


@given(pictures(), st.data())
def test_putting_bits_replaces_whole_words_and_leaves_the_others(bits, data):
    first = data.draw(st.integers(0, words_for(len(bits))))
    words = data.draw(st.integers(0, words_for(len(bits)) - first))
    count = max(min(words * 64, len(bits) - first * 64), 0)
    new = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    bitmap = bitmap_of(bits)
    bitmap.put_bits(first, np.array(new, np.uint8))
    assert bits_of(bitmap) == bits[: first * 64] + [bit == 1 for bit in new] + bits[first * 64 + count :]
    assert bitmap.bits(first, words).tolist() == new


@given(pictures(), st.sampled_from([np.uint8, np.uint64, np.int64]))
def test_runs_of_ones_are_first_and_length_of_what_is_not_zero(bits, kind):
    values = np.array([7 * bit for bit in bits], kind)
    assert runs_of_ones(values).tolist() == [[run.first, run.count] for run in runs_of(bits, True)]
