"""Files that a process has open for writing are synced by descriptor, and whatever a disk does we get out of it."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.disks import on_disk
from support.faults import Call, Decide, Fail, Kill, Run, Stop
from support.leftovers import children, descriptors
from support.system_calls import answered

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.host.files.open_files import MOST_ROUNDS, sync_open_files, written_files

US = os.getpid()
LONG = 60.0


def sync(files: Mapping[int, str], short_seconds: float = LONG, decide: Decide = lambda *_: None) -> Run:
    """Sync files of ours; one round is enough, however busy the machine, unless that is to be shorter."""
    return answered(lambda: sync_open_files(US, files, LONG, short_seconds=short_seconds), decide)


def synced(found: Run) -> list[str]:
    """Paths of what was synced, in whichever process, in their order."""
    return [call.path for call in found.calls if call.name == "fdatasync"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with on_disk(tmp_path) as found:
        yield found


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
def test_it_is_the_very_file_whoever_has_its_name_by_now(folder: Path, written: int, name: str) -> None:
    if name != "kept":
        (folder / "disk").unlink()
    if name == "another's":
        (folder / "disk").touch()
    found = sync(only(written))
    assert found.value == []
    assert synced(found) == [f"{folder}/disk" if name == "kept" else f"{folder}/disk (deleted)"]


def test_a_file_that_is_open_twice_is_synced_once(folder: Path, written: int) -> None:
    again = os.open(f"/proc/self/fd/{written}", os.O_RDWR)
    try:
        found = sync({**only(written), **only(again)})
    finally:
        os.close(again)
    assert found.value == []
    assert synced(found) == [f"{folder}/disk"]


def test_devices_and_files_in_memory_are_left_alone(folder: Path, written: int) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as memory, open("/dev/null", "r+b", buffering=0) as device:
        files = {fd: written_files(US)[fd] for fd in (memory.fileno(), device.fileno(), written)}
        found = sync(files)
    assert found.value == []
    assert synced(found) == [f"{folder}/disk"]


def test_a_file_that_is_closed_meanwhile_is_no_fault(folder: Path, written: int) -> None:
    files = only(written)
    closed = os.open(folder / "other", os.O_RDWR | os.O_CREAT)
    files |= only(closed)
    os.close(closed)
    found = sync(files)
    assert found.value == []
    assert synced(found) == [f"{folder}/disk"]


def test_whoever_writes_as_fast_as_it_is_synced_is_not_waited_for(folder: Path, written: int) -> None:
    found = sync(only(written), short_seconds=0.0)
    assert found.value == []
    assert synced(found) == [f"{folder}/disk"] * MOST_ROUNDS


def failing(_: Call) -> Fail:
    return Fail(errno.EIO)


def hanging(call: Call) -> Stop:
    return Stop([call.pid])


def dying(call: Call) -> Kill:
    return Kill([call.pid])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (failing, "cannot be synced: input/output error"),
        (hanging, "is not in sync after 0.1 s"),
        (dying, "cannot be synced: the process that does so has ended"),
    ],
)
def test_a_disk_that_does_not_sync_is_named_and_leaves_no_process(
    folder: Path, written: int, what: Callable[[Call], Fail | Stop | Kill], said: str
) -> None:
    files = only(written)

    def attempt() -> list[str]:
        before = descriptors(), children()
        notes = sync_open_files(US, files, 0.1 if what is hanging else LONG)
        assert (descriptors(), children()) == before
        return notes

    found = answered(attempt, lambda call, _: what(call) if call.name == "fdatasync" else None)
    assert found.value == [f"'{folder}/disk' {said}"]
    assert found.orphans == ()


def test_one_disk_that_fails_does_not_keep_the_others_from_being_synced(folder: Path, written: int) -> None:
    other = os.open(folder / "other", os.O_RDWR | os.O_CREAT)
    bad = f"{folder}/disk"
    try:
        found = sync(
            {**only(written), **only(other)},
            decide=lambda call, _: Fail(errno.EIO) if (call.name, call.path) == ("fdatasync", bad) else None,
        )
    finally:
        os.close(other)
    assert found.value == [f"{bad!r} cannot be synced: input/output error"]
    assert synced(found) == [bad, f"{folder}/other"]
