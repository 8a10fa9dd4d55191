import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel_fixedram.host import linux
from parallel_fixedram.host.page_cache import dirty_room, is_cold, takes_direct_io

MIB = 1 << 20


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[int]:
    """A file of 16 MiB on a file system that tells what is cached."""
    fd = os.open(tmp_path / "FILE", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 16 * MIB)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
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


def test_a_file_system_that_cannot_tell_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "preadv", refuse)
    assert not is_cold(0, [0, 1, 2])


def test_a_file_takes_direct_io_where_it_can_be_opened_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "FILE"
    path.write_bytes(b"x")
    opened: list[int] = []
    real = os.open

    def watched(name: str, flags: int) -> int:
        opened.append(flags)
        return real(name, flags & ~os.O_DIRECT)

    def refuse(_name: str, flags: int) -> int:
        raise OSError(errno.EINVAL if flags & os.O_DIRECT else errno.EPERM, "no")

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", watched)
    assert takes_direct_io(str(path))
    assert opened[0] & os.O_DIRECT
    assert not takes_direct_io(str(path) + "x")
    monkeypatch.setattr(os, "open", refuse)
    assert not takes_direct_io(str(path))
    assert set(os.listdir("/proc/self/fd")) == before


def test_where_the_kernel_does_not_tell_the_page_cache_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("builtins.open", refuse)
    room = dirty_room()
    monkeypatch.undo()
    assert room == 0
