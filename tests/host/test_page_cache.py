import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.refusing import Refuse
from support.system_calls import without

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.page_cache import (
    cached_bytes,
    dirty_room,
    drop_from_cache,
    is_cold,
    takes_direct_io,
)

MIB = 1 << 20
TRIES = 100


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[int]:
    """A file of 16 MiB on a file system that tells what is cached."""
    fd = os.open(tmp_path / "FILE", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 16 * MIB)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    for _ in range(TRIES):  # a page that a processor has just put away may stay
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not cached_bytes(fd):
            break
    if linux.is_tmpfs(fd):
        pytest.skip("the temporary folder is memory")
    try:
        os.preadv(fd, [bytearray(1)], 15 * MIB, os.RWF_NOWAIT)
        pytest.skip("this file system cannot be made cold")
    except BlockingIOError:
        yield fd
    except OSError as error:
        pytest.skip(f"this file system does not tell what is cached: {error}")
    finally:
        os.close(fd)


@pytest.fixture
def tells() -> None:
    """Skips the test where the kernel has no cachestat(2)."""
    fd = os.memfd_create("any")
    try:
        linux.cachestat(fd)
    except OSError as error:
        pytest.skip(f"cachestat(2): {error}")
    finally:
        os.close(fd)


def test_a_file_is_cold_where_most_of_it_has_to_come_from_the_device(on_disk: int) -> None:
    assert is_cold(on_disk, [MIB])
    for offset in (2 * MIB, 3 * MIB):
        os.pread(on_disk, 1, offset)
    assert not is_cold(on_disk, [2 * MIB, 3 * MIB])
    assert not is_cold(on_disk, [2 * MIB, 3 * MIB, 4 * MIB])
    assert not is_cold(on_disk, [2 * MIB, 5 * MIB])
    assert is_cold(on_disk, [6 * MIB, 2 * MIB, 7 * MIB])


def test_asking_of_no_bytes_or_of_bytes_behind_the_end_is_warm(on_disk: int) -> None:
    assert not is_cold(on_disk, [])
    assert not is_cold(on_disk, [17 * MIB, 1 << 50])


def test_memory_is_warm_also_where_it_was_never_touched() -> None:
    fd = os.memfd_create("warm")
    os.ftruncate(fd, MIB)
    os.pwrite(fd, b"x", 0)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert not is_cold(fd, [0, 4096, MIB // 2])
    os.close(fd)


def test_a_file_system_that_cannot_tell_is_warm(on_disk: int, refuse: Refuse) -> None:
    refuse(linux, "cachestat", errno.EOPNOTSUPP)
    refuse(os, "preadv", errno.EOPNOTSUPP)
    assert not is_cold(on_disk, [MIB, 2 * MIB, 3 * MIB])


def test_an_older_kernel_tells_what_is_cold_by_beginning_to_read_it(on_disk: int, refuse: Refuse) -> None:
    refuse(linux, "cachestat", errno.EOPNOTSUPP)
    os.pread(on_disk, 1, MIB)
    assert is_cold(on_disk, [8 * MIB])
    assert not is_cold(on_disk, [MIB])


@pytest.mark.usefixtures("tells")
def test_asking_whether_a_file_is_cold_reads_nothing(on_disk: int) -> None:
    os.pread(on_disk, 1, 15 * MIB)
    drop_from_cache(on_disk)
    assert is_cold(on_disk, list(range(0, 16 * MIB, MIB)))
    assert cached_bytes(on_disk) == 0


def test_a_file_takes_direct_io_where_it_can_be_opened_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse_direct_io: Callable[[], None]
) -> None:
    path = tmp_path / "FILE"
    path.write_bytes(b"x")
    opened: list[int] = []
    real = os.open

    def watched(name: str, flags: int) -> int:
        opened.append(flags)
        return real(name, flags & ~os.O_DIRECT)

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", watched)
    assert takes_direct_io(str(path))
    assert opened[0] & os.O_DIRECT
    assert not takes_direct_io(str(path) + "x")
    refuse_direct_io()
    assert not takes_direct_io(str(path))
    assert set(os.listdir("/proc/self/fd")) == before


def in_memory(fd: int) -> int:
    """The naive way: bytes of a file that mincore(2) finds in memory, asked of a mapping that nobody touches."""
    length = os.fstat(fd).st_size
    pages = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    view = np.frombuffer(mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8)
    linux.mincore(view.ctypes.data, length, pages)
    return int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE


def all_of(fd: int) -> int | None:
    """Bytes that are counted of a file that was just read; once more, should the kernel have taken a page back."""
    for _ in range(20):
        os.pread(fd, 32 * MIB, 0)
        found = cached_bytes(fd)
        if found == in_memory(fd) == -(-os.fstat(fd).st_size // mmap.PAGESIZE) * mmap.PAGESIZE:
            break
    return found


@pytest.mark.usefixtures("tells")
def test_what_is_cached_is_counted_in_whole_pages(on_disk: int) -> None:
    os.pread(on_disk, 1, 15 * MIB)  # asking for it, as the fixture does, has begun to read it
    drop_from_cache(on_disk)
    assert cached_bytes(on_disk) == in_memory(on_disk) == 0
    for offset in (0, 5 * MIB, 5 * MIB + 4095, 16 * MIB - 1):
        os.pread(on_disk, 1, offset)
    found = cached_bytes(on_disk)
    assert found == in_memory(on_disk)
    assert found is not None
    assert 3 * mmap.PAGESIZE <= found < MIB
    assert all_of(on_disk) == 16 * MIB
    os.pwrite(on_disk, b"x", 16 * MIB)  # a last page of one byte
    assert all_of(on_disk) == 16 * MIB + mmap.PAGESIZE


@pytest.mark.usefixtures("tells")
def test_what_is_dropped_from_the_cache_is_written_first(on_disk: int) -> None:
    os.pwrite(on_disk, b"y" * 8 * MIB, 4 * MIB)
    dirty = cached_bytes(on_disk)
    assert dirty is not None
    assert dirty >= 8 * MIB
    drop_from_cache(on_disk)
    assert cached_bytes(on_disk) == 0
    assert is_cold(on_disk, [5 * MIB])
    assert os.pread(on_disk, 16 * MIB, 0) == b"x" * 4 * MIB + b"y" * 8 * MIB + b"x" * 4 * MIB
    drop_from_cache(on_disk)
    assert cached_bytes(on_disk) == 0


@pytest.mark.usefixtures("tells")
def test_memory_is_cached_where_it_was_touched_and_stays_there() -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, MIB)
    assert cached_bytes(fd) == 0
    os.pwrite(fd, b"x" * 8192, 4096)
    drop_from_cache(fd)
    assert cached_bytes(fd) == 8192
    assert os.pread(fd, 8192, 4096) == b"x" * 8192
    os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_that_cannot_tell_what_is_cached_says_none(refuse: Refuse, number: int) -> None:
    refuse(linux, "cachestat", number)
    assert cached_bytes(0) is None


@pytest.mark.usefixtures("tells")
def test_a_descriptor_of_nothing_is_an_error() -> None:
    closed = os.memfd_create("closed")
    os.close(closed)
    for ask in (cached_bytes, drop_from_cache):
        with pytest.raises(HostError, match="bad file descriptor"):
            ask(closed)


def test_a_file_that_cannot_be_written_to_its_device_is_not_dropped(tmp_path: Path) -> None:
    with (tmp_path / "FILE").open("w+b") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        os.fsync(file.fileno())
        with pytest.raises(HostError, match="input/output error"):
            without(("fsync",), errno.EIO, lambda: drop_from_cache(file.fileno()))
        assert cached_bytes(file.fileno()) == mmap.PAGESIZE


def test_where_the_kernel_does_not_tell_the_page_cache_has_no_room() -> None:
    assert without(("openat",), errno.EACCES, dirty_room) == 0
