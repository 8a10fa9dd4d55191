import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import GIB, KIB, MAX_SIZE, MIB, align_up, format_rate, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("4k", 4 * KIB),
        ("64KiB", 64 * KIB),
        ("64KB", 64_000),
        ("1.5 gb", 1_500_000_000),
        ("1gib", GIB),
        ("1M", MIB),
        (" 1 GiB ", GIB),
        ("1.5G", 3 * GIB // 2),
        ("0.5k", 512),
        ("1.000", 1),
        ("2T", 2 * 1024**4),
        ("1P", 1024**5),
        ("7E", 7 * 1024**6),
        (str(MAX_SIZE), MAX_SIZE),
        ("0" * 40 + "7", 7),
    ],
)
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a size"),
        ("-1", "not a size"),
        ("+1", "not a size"),
        ("1e3", "not a size"),
        ("0x10", "not a size"),
        ("1_000", "not a size"),
        (".5K", "not a size"),
        ("1.K", "not a size"),
        ("K", "not a size"),
        ("1KK", "not a size"),
        ("1iB", "not a size"),
        ("1 2", "not a size"),
        ("\u0661K", "not a size"),
        ("1\u212a", "not a size"),
        ("1.5", "not a whole number of bytes"),
        ("0.0001KB", "not a whole number of bytes"),
        ("0.3K", "not a whole number of bytes"),
        ("8E", "size too large"),
        (str(MAX_SIZE + 1), "size too large"),
        ("9" * 64, "size too large"),
        ("9" * 5000, "not a size"),
        ("1." + "0" * 5000, "not a size"),
    ],
)
def test_what_is_no_size_is_refused_in_a_sentence(text, reason):
    with pytest.raises(RequestError, match=reason) as caught:
        parse_size(text)
    assert len(caught.value.message) < 200


@given(st.text(max_size=80))
def test_any_text_is_a_size_or_a_request_error(text):
    with contextlib.suppress(RequestError):
        assert 0 <= parse_size(text) <= MAX_SIZE


@given(st.integers(0, MAX_SIZE))
@example(MAX_SIZE)
def test_a_number_of_bytes_is_itself(size):
    assert parse_size(str(size)) == size


@given(st.integers(0, 1023), st.sampled_from("KMGTP"), st.sampled_from(["", "iB", "ib", "B", "b"]))
def test_a_suffix_is_decimal_where_it_ends_in_b_without_an_i(number, suffix, rest):
    unit = 1000 if rest in ("B", "b") else 1024
    assert parse_size(f"{number}{suffix}{rest}") == number * unit ** ("KMGTP".index(suffix) + 1)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (100 * KIB, "100 KiB"),
        (MIB, "1.0 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (1024**6, "1.0 EiB"),
        (2000 * 1024**6, "2000 EiB"),
    ],
)
def test_a_size_is_shown_with_a_binary_suffix(size, text):
    assert format_size(size) == text


@given(st.integers(KIB, MAX_SIZE))
def test_a_shown_size_is_the_size_to_within_five_percent(size):
    number, suffix = format_size(size).split()
    assert abs(float(number) * 1024 ** ("KMGTPE".index(suffix[0]) + 1) - size) <= size / 20


def test_a_rate_is_binary_too_and_a_dash_where_no_time_passed():
    assert format_rate(5 * GIB // 2, 2.0) == "1.25 GiB/s"
    assert format_rate(1, 0.0) == "-"


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 40))
def test_align_up_gives_the_first_multiple_that_is_not_below(value, alignment):
    aligned = align_up(value, alignment)
    assert aligned % alignment == 0
    assert value <= aligned < value + alignment
