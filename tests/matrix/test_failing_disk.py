"""The disk below the file system fails, for once or for good, when it is written or when it is flushed; or hangs.

After exit 0 the file is there and whole when the disk is looked at anew; after any other exit the old one is.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Result, call
from support.fault_matrix import Count
from support.faults import Forked, Moment, before, behind
from support.pictures import draw
from support.served_disk import ServedDisk, served_disk

import parallel_fixedram
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.publish import PendingFile
from parallel_fixedram.image.draft import Draft

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")]

PICTURE = "A" * 2000 + "0-" * 10
OLD = b"old" * 9999
ROW = "the disk fails or hangs"
HANG_SECONDS = 3.0


@pytest.fixture
def disk() -> Iterator[ServedDisk]:
    """With an old file on it; what does not survive its failures is not looked at again."""
    with served_disk("ext4") as found:
        (found.folder / "vm.mr").write_bytes(OLD)
        found.settle()
        yield found


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    path = tmp_path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), PICTURE)
    return path


def argv(ram: Path, file: Path, direct: str) -> list[object]:
    return ["save", file, "--ram", f"pc.ram={ram}", "--overwrite", "--direct-io", direct]


def check_old(disk: ServedDisk) -> None:
    """On the disk itself, whose journal is replayed: what is in memory does not count."""
    disk.heal()
    disk.come_back()
    assert (disk.folder / "vm.mr").read_bytes() == OLD


def check_failed(result: Result, code: int = 5) -> None:
    assert result.code == code, result
    assert len([line for line in result.err.splitlines() if "error:" in line]) == 1, result.err


def check_next_save(disk: ServedDisk, ram: Path) -> None:
    file = disk.folder / "vm.mr"
    assert call(*map(str, argv(ram, file, "auto"))).code == 0
    disk.come_back()
    assert parallel_fixedram.verify(str(file), ram={"pc.ram": str(ram)}).ok
    assert {name for name in os.listdir(disk.folder) if "vm.mr" in name} == {"vm.mr"}


FIRST_PAGES = behind(Draft, "reserve")
SYNC = before(FileChannel, "sync")


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize(
    ("asked", "times", "moment"),
    [("pwrite", 0, FIRST_PAGES), ("pwrite", 1, FIRST_PAGES), ("flush", 1, SYNC)],
    ids=["every write", "one write", "one flush"],
)
def test_the_old_file_stays_where_it_fails(
    disk: ServedDisk, ram: Path, asked: str, times: int, moment: Moment, direct: str, count: Count
) -> None:
    file = disk.folder / "vm.mr"
    with Forked(*argv(ram, file, direct), moment=moment, act=lambda *_: disk.fail(asked, times)) as command:
        result = command.finish()
        assert command.left() == []
    assert times == 0 or disk.has_failed(asked)
    check_failed(result)
    check_old(disk)
    check_next_save(disk, ram)
    count(ROW, 1)


def test_a_folder_that_the_disk_does_not_take_leaves_a_whole_file_and_says_so(
    disk: ServedDisk, ram: Path, count: Count
) -> None:
    file = disk.folder / "vm.mr"
    moment = before(PendingFile, "sync_folder")
    with Forked(*argv(ram, file, "off"), moment=moment, act=lambda *_: disk.fail("pwrite")) as command:
        check_failed(command.finish(), 6)
    disk.heal()
    disk.come_back()
    if file.read_bytes() != OLD:
        assert parallel_fixedram.verify(str(file), ram={"pc.ram": str(ram)}).ok
    check_next_save(disk, ram)
    count(ROW, 1)


@pytest.mark.parametrize("direct", ["on", "off"])
def test_the_old_file_stays_where_it_has_less_room_than_it_says(ram: Path, direct: str, count: Count) -> None:
    with served_disk("ext4", room=8 << 20) as disk:
        file = disk.folder / "vm.mr"
        file.write_bytes(OLD)
        disk.settle()
        with Forked(*argv(ram, file, direct)) as command:
            check_failed(command.finish())
            assert command.left() == []
        check_old(disk)
    count(ROW, 1)


@pytest.mark.parametrize(("direct", "moment"), [("on", FIRST_PAGES), ("off", SYNC)])
def test_it_is_waited_for_where_it_hangs_for_a_while(
    disk: ServedDisk, ram: Path, direct: str, moment: Moment, count: Count
) -> None:
    file = disk.folder / "vm.mr"
    with Forked(*argv(ram, file, direct), moment=moment, act=lambda *_: disk.hang()) as command:
        assert not ended(command, HANG_SECONDS), "what it has not written cannot be there"
        disk.go_on()
        assert command.finish().code == 0
        assert command.left() == []
    disk.come_back()
    assert parallel_fixedram.verify(str(file), ram={"pc.ram": str(ram)}).ok
    count(ROW, 1)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(("direct", "moment"), [("on", FIRST_PAGES), ("off", SYNC)])
def test_who_is_to_end_while_it_hangs_ends_when_it_goes_on_and_leaves_the_old_file(
    disk: ServedDisk, ram: Path, direct: str, moment: Moment, signum: int, count: Count
) -> None:
    file = disk.folder / "vm.mr"
    with Forked(*argv(ram, file, direct), moment=moment, act=lambda *_: disk.hang()) as command:
        while not command.acted:
            assert not ended(command, 0.01)
        os.kill(command.pid, signum)
        disk.go_on()
        assert command.finish().code == (-signum if signum == signal.SIGKILL else 128 + signum)
        assert command.left() == []
    check_old(disk)
    check_next_save(disk, ram)
    count(ROW, 1)


def ended(command: Forked, seconds: float) -> bool:
    """Whether it ends within that time."""
    pidfd = os.pidfd_open(command.pid)
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("verb", ["verify", "restore"])
def test_a_file_that_it_does_not_give_back_is_not_taken_for_another(
    disk: ServedDisk, ram: Path, tmp_path: Path, verb: str, count: Count
) -> None:
    file, target = disk.folder / "vm.mr", tmp_path / "restored"
    assert call(*map(str, argv(ram, file, "off"))).code == 0
    disk.come_back()
    parallel_fixedram.inspect(str(file))  # its head is in memory, its pages are not
    disk.fail("pread")
    more = ["--ram", f"pc.ram={target}"] if verb == "restore" else []
    check_failed(call(verb, str(file), *more))
    assert sorted(os.listdir(tmp_path)) == ["ram"]
    disk.heal()
    assert call(verb, str(file), *more).code == 0
    count(ROW, 1)
