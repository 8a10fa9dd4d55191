import errno
import os
from pathlib import Path

import pytest
from support.pictures import PAGE, draw, memfd
from support.refusing import Refuse
from support.sources import huge_file

from parallel_fixedram.core.errors import HostError, NoFileError, RequestError
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.host.memory.ram_target import HugeChannel, RamTarget

BLOCK = RAMBlock(idstr="ram", used_length=4 * PAGE)


def enter(target: RamTarget) -> None:
    with target:
        pass


def test_a_destination_that_is_made_is_private_whatever_the_umask_and_goes_away_unless_kept(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    before = os.umask(0o777)
    try:
        with RamTarget(BLOCK, str(path)):
            assert os.listdir(tmp_path) == [".ram.part"]  # not even SIGKILL leaves half a file under its name
            found = (tmp_path / ".ram.part").stat()
            assert (found.st_mode & 0o7777, found.st_size) == (0o600, 4 * PAGE)
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == []
    with RamTarget(BLOCK, str(path)) as target:
        target.keep()
    assert path.stat().st_blocks == 0


def test_an_error_takes_back_what_was_kept_but_not_what_others_have_put_there(tmp_path: Path) -> None:
    def fail(kept: Path, replaced: bytes) -> None:
        with RamTarget(BLOCK, str(kept)) as target:
            target.keep()
            if replaced:
                (tmp_path / "theirs").write_bytes(replaced)
                (tmp_path / "theirs").rename(kept)
            (tmp_path / f".{kept.name}.part").write_bytes(b"of another writer")
            raise HostError("something else cannot be kept")

    for replaced in (b"", b"theirs"):
        with pytest.raises(HostError, match="something else"):
            fail(tmp_path / "ram", replaced)
        assert (tmp_path / ".ram.part").read_bytes() == b"of another writer"
        (tmp_path / ".ram.part").unlink()
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [replaced] * bool(replaced)


def test_a_name_that_cannot_be_looked_at_is_not_taken_for_a_free_one(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "ram").write_bytes(b"x" * 4 * PAGE)
    refuse(os, "lstat", errno.EIO)
    with pytest.raises(HostError, match=r"cannot look at .*: input/output error"):
        enter(RamTarget(BLOCK, str(tmp_path / "ram")))
    with pytest.raises(HostError, match=r"cannot look at .*: input/output error"):
        enter(RamTarget(BLOCK, str(tmp_path / "new")))
    assert os.listdir(tmp_path) == ["ram"]


def test_a_destination_that_goes_away_by_itself_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with RamTarget(BLOCK, str(path)):
        (tmp_path / ".ram.part").unlink()


def test_an_existing_file_is_taken_as_it_is_and_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"x" * 4 * PAGE)
    path.chmod(0o640)
    with RamTarget(BLOCK, str(path)):
        pass
    assert path.read_bytes() == b"x" * 4 * PAGE
    assert path.stat().st_mode & 0o7777 == 0o640


def test_the_memory_of_another_process_is_reached_through_its_descriptor() -> None:
    fd = memfd("A--B")
    with RamTarget(BLOCK, f"/proc/{os.getpid()}/fd/{fd}") as target:
        assert target.data_ranges() == [PageRange(0, 1), PageRange(3, 1)]
    os.close(fd)


def test_a_block_may_be_the_rest_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), "XXA-0B")
    with RamTarget(BLOCK, str(path), offset=2 * PAGE) as target:
        assert target.data_ranges() == [PageRange(0, 1), PageRange(2, 2)]


@pytest.mark.parametrize(
    ("pages", "offset", "message"),
    [
        (3, 0, "block 'ram' has 16384 bytes, its destination .* has 12288"),
        (5, 0, "its destination .* has 20480"),
        (5, PAGE + 1, "its destination .* has 16383"),
        (1, 9 * PAGE, "its destination .* has 0"),
    ],
)
def test_a_file_of_another_size_is_refused(tmp_path: Path, pages: int, offset: int, message: str) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(pages * PAGE))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RequestError, match=message):
        enter(RamTarget(BLOCK, str(path), offset=offset))
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_offset_that_is_no_page_is_refused_and_what_was_made_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with pytest.raises(RequestError, match=r"offset 100 of .* is not a multiple of 4096"):
        enter(RamTarget(BLOCK, str(path), offset=100))
    assert not path.exists()


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null", str(tmp_path)):
        with pytest.raises(RequestError, match="is not a regular file"):
            enter(RamTarget(BLOCK, path))
    with pytest.raises(NoFileError, match="cannot open the folder"):
        enter(RamTarget(BLOCK, str(tmp_path / "missing" / "ram")))


def test_a_destination_whose_size_the_file_system_refuses_is_gone(tmp_path: Path) -> None:
    path, before = tmp_path / "ram", set(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=r"cannot size .*: file too large"):
        enter(RamTarget(RAMBlock(idstr="ram", used_length=1 << 62), str(path)))
    assert not path.exists()
    assert set(os.listdir("/proc/self/fd")) == before


def test_huge_pages_are_recognised() -> None:
    with huge_file(1) as file, RamTarget(RAMBlock(idstr="ram", used_length=file.size), file.path) as target:
        assert target.huge
        assert isinstance(target.channel(), HugeChannel)
