import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.channels import FailingChannel, LateChannel, MemoryChannel, RecordingChannel
from support.conformance import ChannelConformance, OpenChannel, aligned
from support.faults import Decide, Fail, Lie, Shorten
from support.pictures import PAGE, allocated_pages, content, picture_of, read_all
from support.refusing import Refuse
from support.sources import huge_file
from support.system_calls import answered

from parallel_fixedram.core.errors import FormatError, HostError, NoFileError, RequestError
from parallel_fixedram.core.latency import LatencyCounter
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.host import linux
from parallel_fixedram.host.files import aio
from parallel_fixedram.host.files.channel import (
    FileChannel,
    ReadBackChannel,
    data_end,
    data_extents,
    open_readable,
    open_writable,
)
from parallel_fixedram.host.files.direct_channel import DirectChannel
from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.host.memory.ram_target import HugeChannel, RamTarget

SIZE = 16 * PAGE


def opened_file(path: Path, flags: int = 0) -> OpenChannel:
    path.write_bytes(b"")
    os.truncate(path, SIZE)
    try:
        fd = os.open(path, os.O_RDWR | flags)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    return OpenChannel(FileChannel(fd, str(path)), SIZE, path.read_bytes)


class TestBufferedFile(ChannelConformance):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[OpenChannel]:
        opened = opened_file(tmp_path / "file")
        yield opened
        os.close(opened.channel.fd)


class TestDirectFile(ChannelConformance):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[OpenChannel]:
        opened = opened_file(tmp_path / "file", os.O_DIRECT)
        yield opened
        os.close(opened.channel.fd)


class TestDirectChannel(ChannelConformance):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[OpenChannel]:
        opened = opened_file(tmp_path / "file", os.O_DIRECT)
        assert isinstance(opened.channel, FileChannel)
        yield OpenChannel(DirectChannel(opened.channel.fd, "file"), SIZE, opened.look)
        os.close(opened.channel.fd)


class TestDirectChannelOfMemory(ChannelConformance):
    """Where there is nothing to be waited for, and every write is done when it has begun."""

    @pytest.fixture
    def opened(self) -> Iterator[OpenChannel]:
        fd = os.memfd_create("file", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        yield OpenChannel(DirectChannel(fd, "file"), SIZE, lambda: read_all(fd))
        os.close(fd)


class TestDirectChannelWithoutQueue(ChannelConformance):
    @pytest.fixture
    def opened(self, tmp_path: Path, refuse: Refuse) -> Iterator[OpenChannel]:
        refuse(aio, "_call", errno.ENOSYS)
        opened = opened_file(tmp_path / "file", os.O_DIRECT)
        assert isinstance(opened.channel, FileChannel)
        yield OpenChannel(DirectChannel(opened.channel.fd, "file"), SIZE, opened.look)
        os.close(opened.channel.fd)


class TestFileWhereHolesCannotBeMade(ChannelConformance):
    @pytest.fixture
    def opened(self, tmp_path: Path, refuse: Refuse) -> Iterator[OpenChannel]:
        refuse(linux, "fallocate", errno.EOPNOTSUPP)
        opened = opened_file(tmp_path / "file", os.O_DIRECT)
        yield opened
        os.close(opened.channel.fd)


class TestHugePages(ChannelConformance):
    @pytest.fixture
    def opened(self) -> Iterator[OpenChannel]:
        with huge_file(2) as file:
            block = RAMBlock(idstr="huge", used_length=file.size, host_page_size=file.page_size)
            with RamTarget(block, file.path) as target:
                channel = target.channel()
                assert isinstance(channel, HugeChannel)
                yield OpenChannel(channel, file.size, lambda: read_all(file.fd))


class TestMemoryChannel(ChannelConformance):
    @pytest.fixture
    def opened(self) -> OpenChannel:
        channel = MemoryChannel(SIZE)
        return OpenChannel(channel, SIZE, lambda: channel.memory[:])


class TestLateChannel(ChannelConformance):
    @pytest.fixture
    def opened(self) -> OpenChannel:
        memory = MemoryChannel(SIZE)
        return OpenChannel(LateChannel(memory), SIZE, lambda: memory.memory[:])


class TestRecordingChannel(ChannelConformance):
    @pytest.fixture
    def opened(self) -> Iterator[OpenChannel]:
        memory = MemoryChannel(SIZE)
        channel = RecordingChannel(memory, SIZE)
        yield OpenChannel(channel, SIZE, lambda: memory.memory[:])
        channel.close()


class TestFailingChannelBeforeItFails(ChannelConformance):
    @pytest.fixture
    def opened(self) -> Iterator[OpenChannel]:
        memory = MemoryChannel(SIZE)
        channel = FailingChannel(memory, errno=errno.EIO, successes=100)
        yield OpenChannel(channel, SIZE, lambda: memory.memory[:])
        channel.close()


def test_a_recording_channel_notes_a_page_written_twice_in_a_round_but_not_in_two() -> None:
    channel = RecordingChannel(MemoryChannel(SIZE), SIZE)
    page = memoryview(content("A"))
    channel.write(0, page)
    channel.punch(0, PAGE)
    channel.next_round()
    channel.write(0, page)
    assert not channel.events("!")
    channel.write(0, page)
    assert len(channel.events("!")) == 1
    channel.close()


def test_a_failing_channel_fails_for_good() -> None:
    channel = FailingChannel(MemoryChannel(SIZE), errno=errno.ENOSPC, successes=2)
    channel.write(0, memoryview(b"x"))
    channel.sync()
    for _ in range(2):
        with pytest.raises(HostError, match="cannot write: no space left on device"):
            channel.write(0, memoryview(b"x"))
    channel.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FileChannel]:
    opened = opened_file(tmp_path / "file")
    assert isinstance(opened.channel, FileChannel)
    yield opened.channel
    os.close(opened.channel.fd)


def short(**lengths: int) -> Decide:
    """Calls of these names do at most so many bytes at a time."""
    return lambda call, _: Shorten(lengths[call.name]) if call.name in lengths else None


def test_short_writes_and_reads_are_continued_where_they_ended(file: FileChannel, tmp_path: Path) -> None:
    data, into = os.urandom(5000), bytearray(6000)

    def act() -> bytes:
        file.write(300, memoryview(data))
        file.read(0, memoryview(into))
        return bytes(into)

    found = answered(act, short(pwrite64=1000, preadv=700, preadv2=700), under=str(tmp_path))
    assert found.value == bytes(300) + data + bytes(700)
    assert len(found.faults) == 5 + 9


def test_short_gathered_writes_are_continued_where_they_ended(file: FileChannel, tmp_path: Path) -> None:
    pages = np.frombuffer(os.urandom(5 * PAGE), "<u8").reshape(5, -1)
    readable = np.array([1, 1, 0, 1, 1], np.uint8)
    runs = np.array([[0, 5]])
    found = answered(
        lambda: file.write_runs(0, pages, runs, readable), short(pwritev=5000, pwritev2=5000), under=str(tmp_path)
    )
    assert len(found.faults) == 5
    into = bytearray(5 * PAGE)
    file.read(0, memoryview(into))
    assert bytes(into) == (pages * readable[:, None].astype("<u8")).tobytes()


@pytest.mark.parametrize("length", [1, PAGE, (1 << 20) + 1])
def test_what_is_read_back_has_to_be_what_was_written(file: FileChannel, tmp_path: Path, length: int) -> None:
    channel, data = ReadBackChannel(FileChannel(file.fd, "NAME")), bytearray(os.urandom(length))
    channel.write(100, memoryview(data))
    into = bytearray(length)
    channel.read(100, memoryview(into))
    assert into == data
    lie = Lie(lambda data, offset: [(data[:-1], offset)])
    data[-1] ^= 1
    with pytest.raises(HostError, match=r"'NAME' at 0x[0-9a-f]+ reads back differently"):
        answered(
            lambda: channel.write(100, memoryview(data)),
            lambda call, _: lie if call.name == "pwrite64" else None,
            under=str(tmp_path),
        )


def test_a_write_of_nothing_is_an_error_and_not_an_endless_loop(file: FileChannel, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="at 0x1000: nothing was written"):
        answered(lambda: file.write(PAGE, memoryview(b"x")), short(pwrite64=0), under=str(tmp_path))


@pytest.mark.parametrize("kind", [FileChannel, DirectChannel])
def test_every_write_is_counted_by_how_long_it_took_where_somebody_asks(
    tmp_path: Path, kind: type[FileChannel]
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | (os.O_DIRECT if kind is DirectChannel else 0))
    try:
        channel = kind(fd, "file")
        pages, every = np.frombuffer(aligned(content("ABCDEFGH")), np.uint64).reshape(8, -1), np.ones(8, np.uint8)
        runs = np.array([[0, 2], [3, 1], [5, 3]])
        channel.write_runs(0, pages, runs, every)
        channel.settle()
        assert channel.write_bins() == ()
        channel = kind(fd, "file")
        channel.write_times = LatencyCounter()
        channel.write(0, aligned(content("A")))
        assert channel.another().write_times is channel.write_times
        channel.write_runs(0, pages, runs, every)
        channel.write_runs(0, pages, runs, np.array([1, 0, 0, 1, 1, 1, 1, 1], np.uint8))
        channel.settle()
        assert sum(channel.write_bins()) == 7
        assert channel.write_bins() == ()
    finally:
        os.close(fd)


def test_errors_say_what_where_and_why_and_keep_the_errno(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    fd = os.open(path, os.O_RDONLY)
    channel = FileChannel(fd, "NAME")
    with pytest.raises(HostError, match="cannot write 'NAME' at 0x10: bad file descriptor") as caught:
        channel.write(16, memoryview(b"x"))
    assert caught.value.errno == errno.EBADF
    with pytest.raises(HostError, match="cannot punch a hole into 'NAME' at 0x20"):
        channel.punch(32, 1)
    with pytest.raises(FormatError, match="at 0x1000: 'NAME' ends, expected 1 more bytes"):
        channel.read(PAGE, memoryview(bytearray(1)))
    os.close(fd)
    with pytest.raises(HostError, match="cannot read 'NAME'"):
        channel.read(0, memoryview(bytearray(1)))
    with pytest.raises(HostError, match="cannot read 'NAME'"):
        channel.bytes_at(0, 1)
    with pytest.raises(HostError, match="cannot sync 'NAME'"):
        channel.sync()


def test_zeros_that_stand_in_for_a_hole_begin_at_a_page(file: FileChannel, tmp_path: Path) -> None:
    """As O_DIRECT wants it; kernels since 6.0 take less, so only the address tells."""
    found = answered(
        lambda: file.punch(3 * PAGE, (2 << 20) + PAGE),
        lambda call, _: Fail(errno.EOPNOTSUPP) if call.name == "fallocate" else None,
        under=str(tmp_path),
    )
    written = [(call.args[1] % PAGE, call.args[3], call.args[2]) for call in found.calls if call.name == "pwrite64"]
    assert written == [(0, 3 * PAGE, 1 << 20), (0, 3 * PAGE + (1 << 20), 1 << 20), (0, 3 * PAGE + (2 << 20), PAGE)]


def test_punching_gives_space_back(file: FileChannel) -> None:
    file.write(0, memoryview(content("ABCD")))
    file.sync()
    before = allocated_pages(file.fd)
    file.punch(PAGE, 2 * PAGE)
    assert allocated_pages(file.fd) == before - 2


def test_bytes_at_gives_fewer_bytes_only_where_the_file_ends(file: FileChannel, tmp_path: Path) -> None:
    file.write(SIZE - 10, memoryview(b"0123456789"))
    found = answered(lambda: file.bytes_at(SIZE - 10, 20), short(pread64=3), under=str(tmp_path))
    assert found.value == b"0123456789"
    assert file.bytes_at(SIZE, 1) == b""


def test_anonymous_memory_can_be_written_to_a_direct_file(tmp_path: Path) -> None:
    opened = opened_file(tmp_path / "file", os.O_DIRECT)
    buffer = memoryview(anonymous_memory(2 * PAGE))
    buffer[:] = content("AB")
    opened.channel.write(PAGE, buffer)
    assert picture_of(opened.look()[: 4 * PAGE]) == "0AB0"
    os.close(opened.channel.fd)


def test_only_regular_files_are_opened_and_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null"):
        for open_it in (open_readable, open_writable):
            with pytest.raises(RequestError, match="is not a regular file"):
                open_it(path)
    with pytest.raises(RequestError, match="is not a regular file"):
        open_readable(str(tmp_path))
    with pytest.raises(NoFileError, match=r"cannot open .*: no such file") as caught:
        open_writable(str(tmp_path / "missing"))
    assert caught.value.errno == errno.ENOENT


def test_a_full_pool_of_huge_pages_is_an_error_and_not_a_bus_error() -> None:
    with huge_file(2, pool=1) as file:
        channel = HugeChannel(file.fd, "huge")
        with pytest.raises(HostError) as caught:
            channel.write(0, aligned(bytes(file.size)))
        assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)


def test_punching_never_touched_huge_pages_takes_none() -> None:
    with huge_file(2) as file:
        HugeChannel(file.fd, "huge").punch(0, file.size)
        with mmap.mmap(file.fd, file.size) as view:
            assert not any(view[:PAGE])
        file.draw("A")
        assert os.fstat(file.fd).st_blocks * 512 == file.page_size


@pytest.mark.parametrize("at", [0, 1, 7, 63])
def test_the_end_of_data_is_where_the_last_hole_begins(tmp_path: Path, at: int) -> None:
    size = 64 * 65536
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(size)
        assert data_end(file.fileno(), size) == 0
        os.pwrite(file.fileno(), b"x", 0)
        os.pwrite(file.fileno(), b"x", at * 65536)
        os.fsync(file.fileno())
        end = data_end(file.fileno(), size)
        assert at * 65536 < end <= (at + 1) * 65536
        assert end == max(last for _, last in data_extents(file.fileno(), 0, size))


def test_where_nobody_can_tell_data_ends_with_the_file(tmp_path: Path, refuse: Refuse) -> None:
    refuse(os, "lseek", errno.EINVAL)
    assert data_end(0, 12345) == 12345
