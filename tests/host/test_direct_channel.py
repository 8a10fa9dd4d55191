"""Runs bypassing the page cache, checked against a channel that writes them page by page."""

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.channels import MemoryChannel
from support.cli import tmpfs
from support.conformance import as_runs, shared_ram
from support.pictures import PAGE, allocated_pages, content, picture_of, read_all
from support.refusing import Refuse

from parallel_fixedram.core.bitmap import Bits, Runs, runs_of_ones
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.core.save_options import QUEUE_DEPTH
from parallel_fixedram.host.files import aio
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.direct_channel import DirectChannel, segments

PAGES = 200


def opened(path: Path, pages: int = PAGES, depth: int = QUEUE_DEPTH) -> DirectChannel:
    """A file on a disk, bypassing the page cache, all of it allocated."""
    path.write_bytes(bytes(pages * PAGE))
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    return DirectChannel(fd, "NAME", depth)


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[DirectChannel]:
    channel = opened(tmp_path / "direct")
    yield channel
    os.close(channel.fd)


@pytest.fixture
def buffered(tmp_path: Path) -> Iterator[FileChannel]:
    with (tmp_path / "buffered").open("w+b") as file:
        os.truncate(file.fileno(), PAGES * PAGE)
        yield FileChannel(file.fileno(), "buffered")


@pytest.fixture(scope="module")
def ram() -> Pages:
    """Pages that differ from each other in every byte that tells."""
    memory = mmap.mmap(-1, 100 * PAGE)
    pages = np.frombuffer(memory, np.uint64).reshape(100, -1)
    pages[:] = np.arange(1, 101, dtype=np.uint64)[:, None] * np.uint64(0x0101010101010101)
    return pages


@st.composite
def masks(draw: st.DrawFn, length: int) -> Bits:
    """Stretches of ones and zeros."""
    bits: list[int] = []
    while len(bits) < length:
        bits += [draw(st.sampled_from((0, 1)))] * draw(st.sampled_from((1, 1, 2, 3, 5, 30, 100)))
    return np.array(bits[:length], np.uint8)


@given(st.data(), st.sampled_from((1, 2, 63, 64, 65, 100)), st.integers(0, 100), st.sampled_from((1, 2, 3, 64)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_gets_what_one_page_at_a_time_would_give_it(
    direct: DirectChannel,
    buffered: FileChannel,
    ram: Pages,
    data: st.DataObject,
    length: int,
    first: int,
    depth: int,
) -> None:
    """Also with fewer places in flight than there are runs."""
    twin = MemoryChannel(PAGES * PAGE)
    for channel in (direct, buffered, twin):
        channel.write(0, memoryview(mmap.mmap(-1, PAGES * PAGE)))  # what the last example left
    direct._queue = aio.Queue(direct.fd, depth)
    wanted, readable, window = data.draw(masks(length)), data.draw(masks(length)), data.draw(st.integers(1, 100))
    for start in range(0, length, window):
        part = slice(start, min(start + window, length))
        for channel in (direct, buffered, twin):
            channel.write_runs((first + start) * PAGE, ram[part], runs_of_ones(wanted[part]), readable[part])
    for channel in (direct, buffered, twin):
        channel.settle()
    direct._queue.close()
    with open(f"/proc/self/fd/{direct.fd}", "rb") as file:
        assert file.read() == read_all(buffered.fd) == twin.memory[:]


def cut_page_by_page(runs: Runs, readable: Bits) -> list[list[tuple[int, int]]]:
    """Of each run, first page and length of each stretch of equal bits."""
    found: list[list[tuple[int, int]]] = []
    for first, count in runs.tolist():
        found.append([])
        for page in range(first, first + count):
            if page > first and readable[page] == readable[page - 1]:
                start, length = found[-1].pop()
                found[-1].append((start, length + 1))
            else:
                found[-1].append((page, 1))
    return found


@given(st.data(), st.sampled_from((1, 2, 63, 64, 65, 300)))
def test_runs_are_cut_where_the_naive_twin_cuts_them(data: st.DataObject, length: int) -> None:
    runs, readable = runs_of_ones(data.draw(masks(length))), data.draw(masks(length))
    expected = cut_page_by_page(runs, readable)
    starts, lengths, firsts, counts = segments(runs, readable)
    assert lengths.tolist() == [length for run in expected for _, length in run]
    assert starts.tolist() == [start for run in expected for start, _ in run]
    assert counts.tolist() == [len(run) for run in expected]
    assert firsts.tolist() == [sum(map(len, expected[:number])) for number in range(len(expected))]


def test_there_may_be_as_many_runs_as_pages_and_more_than_places_in_flight(direct: DirectChannel) -> None:
    picture = "AB" * PAGES
    with shared_ram(picture[:PAGES]) as (_, pages, readable):
        direct.write_runs(0, pages, as_runs([(page, 1) for page in range(PAGES)]), readable)
        assert direct._queue is not None
        assert 0 < direct._queue.in_flight <= QUEUE_DEPTH < PAGES
        direct.settle()
        assert direct._queue.in_flight == 0
    direct._queue.close()
    with open(f"/proc/self/fd/{direct.fd}", "rb") as file:
        assert picture_of(file.read()) == picture[:PAGES]


def test_zeros_for_a_larger_window_than_before_are_zeros(direct: DirectChannel) -> None:
    direct.write(0, memoryview(mmap.mmap(-1, 64 * PAGE)))
    for pages in (2, 50, 3):
        with shared_ram("-" * pages + "A") as (fd, memory, readable):
            direct.write_runs(0, memory, as_runs([(0, pages + 1)]), readable)
            direct.settle()
            assert allocated_pages(fd) == 1
    assert direct._queue is not None
    direct._queue.close()
    with open(f"/proc/self/fd/{direct.fd}", "rb") as file:
        assert picture_of(file.read(52 * PAGE)) == "000A" + "0" * 46 + "A0"


def write_all(channel: Channel, pages: Pages, readable: Bits, *calls: list[tuple[int, int]]) -> None:
    """Begin all these runs, one page behind their places, and settle them."""
    for runs in calls:
        channel.write_runs(PAGE, pages, as_runs(runs), readable)
    channel.settle()


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def _limits_again() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_limits_again")
@pytest.mark.parametrize("depth", [1, QUEUE_DEPTH])
def test_a_run_that_cannot_be_written_is_an_error_with_its_place(tmp_path: Path, depth: int) -> None:
    direct = opened(tmp_path / "FILE", depth=depth)
    with shared_ram("ABCDEFGHIJ") as (_, pages, readable):
        limit_file_size(8 * PAGE)
        with pytest.raises(HostError, match=f"cannot write 'NAME' at {9 * PAGE:#x}: file too large") as caught:
            write_all(direct, pages, readable, [(0, 2), (4, 1), (8, 1)], [(3, 1), (6, 1)])
        assert caught.value.errno == errno.EFBIG
        direct.settle()
    assert direct._queue is not None
    assert direct._queue.in_flight == 0
    direct._queue.close()


def test_a_full_file_system_is_an_error_with_its_place(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=64k") as small:
        fd = os.open(small / "FILE", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(fd, 100 * PAGE)
        channel = DirectChannel(fd, "NAME")
        with shared_ram("A" * 100) as (_, pages, readable):
            with pytest.raises(HostError, match=r"cannot write 'NAME' at 0x[0-9a-f]+000: no space left") as caught:
                write_all(channel, pages, readable, [(page, 5) for page in range(0, 95, 5)])
            assert caught.value.errno == errno.ENOSPC
        assert channel._queue is not None
        channel._queue.close()
        os.close(fd)


def test_memory_that_became_shorter_is_an_error_and_no_signal(direct: DirectChannel) -> None:
    with shared_ram("ABCDEFGH") as (fd, pages, readable):
        os.ftruncate(fd, 4 * PAGE)
        with pytest.raises(HostError, match=f"cannot write 'NAME' at {6 * PAGE:#x}: bad address"):
            write_all(direct, pages, readable, [(1, 2), (5, 1)])
    assert direct._queue is not None
    direct._queue.close()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EAGAIN, errno.EPERM])
def test_where_there_is_no_queue_runs_go_one_by_one(direct: DirectChannel, refuse: Refuse, code: int) -> None:
    assert direct.has_queue(1)
    refuse(aio, "_call", code)
    assert not direct.has_queue(1)
    with shared_ram("AB-C") as (fd, pages, readable):
        direct.write_runs(PAGE, pages, as_runs([(0, 1), (2, 2)]), readable)
        direct.settle()
        assert allocated_pages(fd) == 3
    with open(f"/proc/self/fd/{direct.fd}", "rb") as file:
        assert picture_of(file.read(6 * PAGE)) == "0A00C0"


def test_a_queue_is_asked_for_as_deep_as_all_channels_together_need(
    direct: DirectChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(aio, "is_available", lambda requests: not asked.append(requests))
    assert direct.has_queue(1)
    assert direct.has_queue(4)
    assert asked == [QUEUE_DEPTH, 4 * QUEUE_DEPTH]
    assert direct._queue is None


def test_one_write_after_another_needs_no_queue_and_another_channel_is_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = opened(tmp_path / "FILE", depth=0)
    monkeypatch.setattr(aio, "_call", lambda *_: pytest.fail("there is a queue"))
    for channel in (direct, direct.another()):
        assert channel.has_queue(1)
        with shared_ram("AB-C") as (_, pages, readable):
            channel.write_runs(PAGE, pages, as_runs([(0, 1), (2, 2)]), readable)
            channel.settle()
        with open(f"/proc/self/fd/{direct.fd}", "rb") as file:
            assert picture_of(file.read(6 * PAGE)) == "0A00C0"
        os.pwrite(direct.fd, memoryview(mmap.mmap(-1, 6 * PAGE)), 0)
    os.close(direct.fd)


def test_a_process_that_ends_with_writes_in_flight_has_written_them(direct: DirectChannel) -> None:
    """The kernel lets no process be gone before: what it leaves never lands later."""
    with shared_ram("ABCDEFGH") as (_, pages, readable):
        pid = os.fork()
        if pid == 0:
            direct.write_runs(0, pages, as_runs([(page, 1) for page in range(8)]), readable)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    with open(f"/proc/self/fd/{direct.fd}", "rb") as file:
        assert file.read(8 * PAGE) == content("ABCDEFGH")
