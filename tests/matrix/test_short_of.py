"""Something runs short, or is taken away: space, inodes, the right to write, length of files, descriptors, memory."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cli import Result, call
from support.cut_disk import CutDisk, cut_disk, keep_mounts_to_ourselves
from support.fault_matrix import Count
from support.faults import Forked
from support.pictures import draw
from support.tight_memory import Group, group

import parallel_fixedram

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")]

PICTURE = "A" * 2000 + "0-" * 10
ROW = "something runs short"


@pytest.fixture(scope="module")
def disk() -> Iterator[CutDisk]:
    with cut_disk("ext4") as found:
        yield found


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    path = tmp_path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), PICTURE)
    return path


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """No room but for a few pages."""
    free = shutil.disk_usage(folder).free
    ballast = folder / "ballast"
    fd = os.open(ballast, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, free - (1 << 20))
    os.close(fd)
    yield
    ballast.unlink()


@contextlib.contextmanager
def without_inodes(folder: Path) -> Iterator[None]:
    many = folder / "many"
    many.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            (many / str(number)).touch()
    yield
    shutil.rmtree(many)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


def argv(ram: Path, file: Path, direct: str) -> list[object]:
    return ["save", file, "--ram", f"pc.ram={ram}", "--overwrite", "--direct-io", direct]


def save(ram: Path, file: Path, direct: str) -> Result:
    return call(*map(str, argv(ram, file, direct)))


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("shortage", [full, without_inodes, read_only])
@pytest.mark.parametrize("old", [b"", b"old" * 999])
def test_on_a_file_system_that_runs_short_the_old_file_stays(
    disk: CutDisk,
    ram: Path,
    old: bytes,
    shortage: Callable[[Path], contextlib.AbstractContextManager[None]],
    direct: str,
    count: Count,
) -> None:
    file = disk.folder / "vm.mr"
    file.unlink(missing_ok=True)
    if old:
        file.write_bytes(old)
    with shortage(disk.folder):
        before = sorted(os.listdir(disk.folder))
        result = save(ram, file, direct)
        assert result.code == 5, result
        assert len([line for line in result.err.splitlines() if "error:" in line]) == 1, result.err
        assert sorted(os.listdir(disk.folder)) == before
        assert (file.read_bytes() if old else b"") == old
    assert save(ram, file, direct).code == 0
    assert parallel_fixedram.verify(str(file), ram={"pc.ram": str(ram)}).ok
    count(ROW, 1)


def files_of_a_mebibyte() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def two_more_descriptors() -> None:
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2, lowest + 2))


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("limit", [files_of_a_mebibyte, two_more_descriptors])
def test_under_a_limit_of_the_process_the_old_file_stays(
    ram: Path, tmp_path: Path, limit: Callable[[], None], direct: str, count: Count
) -> None:
    file = tmp_path / "vm.mr"
    file.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    with Forked(*argv(ram, file, direct), prepare=limit) as command:
        result = command.finish()
    assert result.code == 5, result
    assert len([line for line in result.err.splitlines() if "error:" in line]) == 1, result.err
    assert (sorted(os.listdir(tmp_path)), file.read_bytes()) == (before, b"old")
    count(ROW, 1)


@pytest.fixture
def control_group() -> Iterator[Group]:
    with group("short-of") as found:
        yield found


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("room", [4 << 20, 24 << 20])
def test_in_a_control_group_with_little_memory_a_save_ends_well_or_is_killed_and_leaves_the_old_file(
    ram: Path, tmp_path: Path, control_group: Group, room: int, direct: str, count: Count
) -> None:
    file = tmp_path / "vm.mr"
    file.write_bytes(b"old")

    def squeezed() -> None:
        control_group.limit(room)
        control_group.take(os.getpid())

    with Forked(*argv(ram, file, direct), prepare=squeezed) as command:
        result = command.finish()
        assert command.left() == []
    if result.code == 0:
        assert parallel_fixedram.verify(str(file), ram={"pc.ram": str(ram)}).ok
    else:
        assert result.code in (5, -signal.SIGKILL), result
        assert file.read_bytes() == b"old"
        assert control_group.killed() or result.code == 5
    count(ROW, 1)


def without_shared_memory() -> None:
    """A full /dev/shm, of this process alone."""
    keep_mounts_to_ourselves()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "full", "/dev/shm"], check=True)
    Path("/dev/shm/ballast").write_bytes(bytes(4096))


@pytest.mark.parametrize("direct", ["on", "off"])
def test_a_save_needs_nothing_of_shared_memory_that_has_a_name(
    ram: Path, tmp_path: Path, direct: str, count: Count
) -> None:
    file = tmp_path / "vm.mr"
    with Forked(*argv(ram, file, direct), prepare=without_shared_memory) as command:
        assert command.finish().code == 0
    assert parallel_fixedram.verify(str(file), ram={"pc.ram": str(ram)}).ok
    count(ROW, 1)
