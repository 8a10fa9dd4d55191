import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import CapabilityError, RequestError
from parallel_fixedram.core.uri import FileTarget, parse_uri

KIB = 1024
MIB = 1024**2
EIB = 1024**6


@pytest.mark.parametrize(
    "path",
    [
        "guest.ram",
        "/var/tmp/guest.ram",
        "./a:b",
        "/x:y",
        "../tcp:1",
        "dir/file:x",
        "a b:c",
        "1:2",
        ":x",
        "./-",
        "_x:y",
        "file",
        "x,offset=4096",
        "Übung:1",
        "\udcff",
    ],
)
def test_what_has_no_scheme_is_a_path_as_it_is(path):
    assert parse_uri(path) == FileTarget(path, 0)


def test_the_name_of_a_standard_stream_is_no_file():
    with pytest.raises(RequestError, match="'-' is not a file") as caught:
        parse_uri("-")
    assert "./-" in caught.value.hint
    assert parse_uri("file:-").path == "-"


@pytest.mark.parametrize(
    ("uri", "path", "offset"),
    [
        ("file:guest.ram", "guest.ram", 0),
        ("file:/tmp/guest.ram", "/tmp/guest.ram", 0),
        ("file:///tmp/guest.ram", "///tmp/guest.ram", 0),
        ("file:a:b", "a:b", 0),
        ("file:tcp:1", "tcp:1", 0),
        ("file:x,offset=4096", "x", 4096),
        ("file:x,y,offset=1M", "x,y", MIB),
        ("file:x,Offset=1", "x,Offset=1", 0),
        ("file:x, offset=1", "x, offset=1", 0),
        ("file:/dev/fdset/7,offset=92", "/dev/fdset/7", 92),
    ],
)
def test_a_file_uri_names_a_path_and_an_offset(uri, path, offset):
    assert parse_uri(uri) == FileTarget(path, offset)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("0", 0),
        ("1", 1),
        ("+5", 5),
        (" 5", 5),
        ("\t5", 5),
        ("010", 10),
        ("0" * 40 + "5", 5),
        ("0x10", 16),
        ("0X1b", 27),
        ("+0x10", 16),
        ("1B", 1),
        ("1k", KIB),
        ("1K", KIB),
        ("1.5K", 1536),
        (".5K", 512),
        ("1.K", KIB),
        ("1.0", 1),
        ("1.0B", 1),
        ("1.0001K", KIB),
        ("1.001K", 1025),
        ("0.0005K", 1),
        ("0.0004K", 0),
        ("0.99999999999999999999", 1),
        ("2m", 2 * MIB),
        ("3G", 3 * 1024**3),
        ("4T", 4 * 1024**4),
        ("5p", 5 * 1024**5),
        ("7.5E", 15 * EIB // 2),
        ("9223372036854775807", 2**63 - 1),
        ("0x7fffffffffffffff", 2**63 - 1),
    ],
)
def test_an_offset_is_read_as_qemu_reads_sizes(text, offset):
    assert parse_uri(f"file:x,offset={text}") == FileTarget("x", offset)


@pytest.mark.parametrize(
    "text",
    [
        *["", "abc", "5 ", "1.5", "1.5B", "1e3", "1.5e3", "1..5K", "1KiB", "1KB", "1Q", "1 K", "0x", "0x10k", "0x1p"],
        *["0x1.8", "00x10", "nan", "inf", ".", ".K", "-", "+", "--1", "+-5", "-5x", "-1K", "1,offset=2", "1_000", "٣"],
        *["0.00000000000000000001", "1\n", "99999999999999999999.5K", "9" * 5000 + "K"],
    ],
)
def test_what_is_not_a_size_is_an_invalid_argument(text):
    with pytest.raises(RequestError) as caught:
        parse_uri(f"file:x,offset={text}")
    assert caught.value.message == f"file URI has bad offset {text}: Invalid argument"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["-5", "-0", "16E", "8E", "9223372036854775808", "18446744073709551616", "0x8000000000000000", "9" * 5000]
)
def test_an_offset_that_no_file_can_have_is_out_of_range(text):
    with pytest.raises(RequestError) as caught:
        parse_uri(f"file:x,offset={text}")
    assert caught.value.message == f"file URI has bad offset {text}: Numerical result out of range"


@pytest.mark.parametrize(
    "uri",
    [
        *["tcp:localhost:4444", "tcp:", "tcp:0:4444,offset=1", "unix:/run/qemu.sock", "vsock:2:1234"],
        *["exec:cat > file", "exec:", "fd:3", "fd:name", "rdma:host:4444"],
    ],
)
def test_a_transport_that_cannot_seek_is_refused_by_the_gate(uri):
    with pytest.raises(CapabilityError) as caught:
        parse_uri(uri)
    assert caught.value.message == "Migration requires seekable transport (e.g. file)"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "uri", ["a:b", "http://host/x", "FILE:/x", "TCP:host:1", "nbd+unix:///x", "x-rdma:host:1", "c:"]
)
def test_an_unknown_scheme_is_refused_and_the_hint_says_how_to_name_such_a_file(uri):
    with pytest.raises(RequestError) as caught:
        parse_uri(uri)
    assert not isinstance(caught.value, CapabilityError)
    assert caught.value.message == f"unknown migration protocol: {uri}"
    assert caught.value.hint == f"for a file of that name write ./{uri}"
    assert parse_uri(f"./{uri}") == FileTarget(f"./{uri}", 0)


@pytest.mark.parametrize("text", ["", "file:", "file:,offset=1"])
def test_an_empty_path_is_refused(text):
    with pytest.raises(RequestError, match=r"^the name of the file is empty$"):
        parse_uri(text)


@pytest.mark.parametrize("text", ["a\0b", "file:a\0b", "file:a\0,offset=1"])
def test_a_path_with_a_nul_character_is_refused(text):
    with pytest.raises(RequestError, match=r"^the name of the file contains a NUL character: 'a\\x00"):
        parse_uri(text)


@given(st.integers(0, 2**63 - 1))
def test_every_offset_a_file_can_have_is_read_back(offset):
    for text in (str(offset), hex(offset), f"{offset}b"):
        assert parse_uri(f"file:x,offset={text}").offset == offset


@given(st.integers(0, 2**20), st.sampled_from("KMGT"), st.integers(0, 1023))
def test_binary_fractions_are_exact(whole, suffix, thousandth):
    unit = KIB ** ("KMGT".index(suffix) + 1)
    text = f"{whole + thousandth / 1024:.10f}{suffix}"
    assert parse_uri(f"file:x,offset={text}").offset == whole * unit + thousandth * (unit // 1024)


fragments = st.sampled_from(["file:", "tcp:", ",offset=", "0x", "1", ".", "K", "-", "/", ":", "x", " ", "\0", "e", "é"])


@given(st.lists(fragments, max_size=8).map("".join) | st.text(max_size=12))
def test_any_text_is_a_target_or_a_refused_request(text):
    try:
        target = parse_uri(text)
    except RequestError:
        return
    assert target.path
    assert 0 <= target.offset < 2**63


def test_every_scheme_is_refused_or_a_file_whatever_follows():
    schemes = ("tcp", "unix", "vsock", "exec", "fd", "rdma", "other")
    for scheme, rest in itertools.product(schemes, ("", "x", "/x", ",offset=1", "//x:1")):
        with pytest.raises(RequestError):
            parse_uri(f"{scheme}:{rest}")
