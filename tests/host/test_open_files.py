"""Files that a process has open for writing are synced by descriptor, and whatever a disk does we get out of it."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.disks import on_disk

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.host.files import open_files
from parallel_fixedram.host.files.open_files import MOST_ROUNDS, sync_open_files, written_files

US = os.getpid()
LONG = 60.0


class Log:
    """What was synced, in whichever process: inode numbers in their order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def __call__(self, fd: int) -> None:
        with open(self._path, "a", encoding="ascii") as file:
            file.write(f"{os.fstat(fd).st_ino}\n")

    def inodes(self) -> list[int]:
        return [int(line) for line in self._path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with on_disk(tmp_path) as found:
        yield found


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log(tmp_path / "log")
    monkeypatch.setattr(os, "fdatasync", log)
    monkeypatch.setattr(open_files, "SHORT_SECONDS", LONG)  # one round is enough, however busy the machine
    return log


@pytest.fixture
def written(folder: Path) -> Iterator[int]:
    """A descriptor of a file that is written."""
    fd = os.open(folder / "disk", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def only(fd: int) -> dict[int, str]:
    return {fd: written_files(US)[fd]}


def test_what_is_only_read_or_only_written_mapped_or_no_file_is_not_among_them(folder: Path, written: int) -> None:
    readable, log = os.open(folder / "disk", os.O_RDONLY), os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    ram = os.open(folder / "ram", os.O_RDWR | os.O_CREAT)
    os.truncate(ram, mmap.PAGESIZE)
    memory, (reading, writing) = mmap.mmap(ram, mmap.PAGESIZE), os.pipe()
    try:
        found = written_files(US)
        assert found[written] == os.fspath(folder / "disk")
        assert not {readable, log, ram, reading, writing} & set(found)
    finally:
        memory.close()
        for fd in (readable, log, ram, reading, writing):
            os.close(fd)


def test_a_process_that_is_gone_is_said_to_be_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(MachineError, match="has ended"):
        written_files(pid)


@pytest.mark.parametrize("name", ["kept", "another's", "nobody's"])
def test_it_is_the_very_file_whoever_has_its_name_by_now(folder: Path, written: int, synced: Log, name: str) -> None:
    if name != "kept":
        (folder / "disk").unlink()
    if name == "another's":
        (folder / "disk").touch()
    assert sync_open_files(US, only(written), LONG) == []
    assert synced.inodes() == [os.fstat(written).st_ino]


def test_a_file_that_is_open_twice_is_synced_once(written: int, synced: Log) -> None:
    again = os.open(f"/proc/self/fd/{written}", os.O_RDWR)
    try:
        assert sync_open_files(US, {**only(written), **only(again)}, LONG) == []
    finally:
        os.close(again)
    assert synced.inodes() == [os.fstat(written).st_ino]


def test_devices_and_files_in_memory_are_left_alone(written: int, synced: Log) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as memory, open("/dev/null", "r+b", buffering=0) as device:
        files = {fd: written_files(US)[fd] for fd in (memory.fileno(), device.fileno(), written)}
        assert sync_open_files(US, files, LONG) == []
    assert synced.inodes() == [os.fstat(written).st_ino]


def test_a_file_that_is_closed_meanwhile_is_no_fault(folder: Path, written: int, synced: Log) -> None:
    files = only(written)
    closed = os.open(folder / "other", os.O_RDWR | os.O_CREAT)
    files |= only(closed)
    os.close(closed)
    assert sync_open_files(US, files, LONG) == []
    assert synced.inodes() == [os.fstat(written).st_ino]


def test_whoever_writes_as_fast_as_it_is_synced_is_not_waited_for(
    written: int, synced: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "SHORT_SECONDS", 0.0)
    assert sync_open_files(US, only(written), LONG) == []
    assert synced.inodes() == [os.fstat(written).st_ino] * MOST_ROUNDS


def failing(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def hanging(fd: int) -> None:
    reading, _writing = os.pipe()
    os.read(reading, 1)


def dying(fd: int) -> None:
    os._exit(1)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (failing, "cannot be synced: input/output error"),
        (hanging, "is not in sync after 0.1 s"),
        (dying, "cannot be synced: the process that does so has ended"),
    ],
)
def test_a_disk_that_does_not_sync_is_named_and_leaves_no_process(
    folder: Path, written: int, monkeypatch: pytest.MonkeyPatch, what: Callable[[int], None], said: str
) -> None:
    monkeypatch.setattr(os, "fdatasync", what)
    before, descriptors = psutil.Process().children(), os.listdir("/proc/self/fd")
    notes = sync_open_files(US, only(written), 0.1 if what is hanging else LONG)
    assert notes == [f"'{folder}/disk' {said}"]
    assert psutil.Process().children() == before
    assert os.listdir("/proc/self/fd") == descriptors


def test_one_disk_that_fails_does_not_keep_the_others_from_being_synced(
    folder: Path, written: int, synced: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.open(folder / "other", os.O_RDWR | os.O_CREAT)
    bad = os.fstat(written).st_ino
    monkeypatch.setattr(os, "fdatasync", lambda fd: failing(fd) if os.fstat(fd).st_ino == bad else synced(fd))
    try:
        notes = sync_open_files(US, {**only(written), **only(other)}, LONG)
        assert notes == [f"'{folder}/disk' cannot be synced: input/output error"]
        assert synced.inodes()[0] == os.fstat(other).st_ino
    finally:
        os.close(other)
