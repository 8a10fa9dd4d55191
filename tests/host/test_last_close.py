"""The last close of a large file that has no name: by another process, after ours, with nobody waiting for it."""

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.leftovers import children
from support.refusing import Refuse

from parallel_fixedram.host.files import last_close
from parallel_fixedram.host.files.last_close import WORTH_A_PROCESS, close_unwaited


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What this process forked."""
    real, found = os.fork, []

    def fork() -> int:
        pid = real()
        found.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork)
    yield found
    assert children() == set()  # whatever was started is no child of ours


def nameless(folder: Path, size: int) -> int:
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(fd, 0, size)
    return fd


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_large_file_is_closed_last_by_a_process_that_ends_by_itself(tmp_path: Path, forks: list[int]) -> None:
    fd = nameless(tmp_path, WORTH_A_PROCESS)
    gone, held = os.pipe()  # the process closes all it does not need, or this would not end before it does
    try:
        close_unwaited(fd)
        assert not is_open(fd)
        assert len(forks) == 1
        os.close(held)
        assert select.select([gone], [], [], 30)[0], "somebody still holds a descriptor that was ours"
    finally:
        os.close(gone)


def test_that_process_waits_until_ours_has_closed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or ours would be the last one, and free the blocks."""
    fd = nameless(tmp_path, WORTH_A_PROCESS)
    inode = os.fstat(fd).st_ino
    others: list[bool] = []

    def close(closed: int) -> None:
        if closed == fd:
            others.append(any(holds(int(pid), inode) for pid in os.listdir("/proc") if pid.isdigit()))
        os.close(closed)

    monkeypatch.setattr(last_close.linux, "close", close)
    close_unwaited(fd)
    assert others == [True]


def holds(pid: int, inode: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        return any(os.stat(f"/proc/{pid}/fd/{fd}").st_ino == inode for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


@pytest.mark.parametrize("size", [1, WORTH_A_PROCESS // 2])
def test_a_small_file_is_closed_here(tmp_path: Path, forks: list[int], size: int) -> None:
    fd = nameless(tmp_path, size)
    close_unwaited(fd)
    assert (is_open(fd), forks) == (False, [])


def test_a_file_that_still_has_a_name_is_closed_here(tmp_path: Path, forks: list[int]) -> None:
    fd = os.open(tmp_path / "name", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.posix_fallocate(fd, 0, WORTH_A_PROCESS)
    close_unwaited(fd)
    assert (is_open(fd), forks) == (False, [])


def test_where_no_process_can_be_started_it_is_closed_here(tmp_path: Path, refuse: Refuse) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    fd = nameless(tmp_path, WORTH_A_PROCESS)
    refuse(os, "fork", errno.EAGAIN)
    close_unwaited(fd)
    assert not is_open(fd)
    assert sorted(os.listdir("/proc/self/fd")) == before
