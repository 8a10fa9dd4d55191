import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faults import Fail
from support.leftovers import descriptors
from support.refusing import Refuse
from support.system_calls import answered

from parallel_fixedram.core.errors import HostError, NoFileError, RequestError
from parallel_fixedram.host.memory.shared_memory import SharedMemory


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o277, 0o777])
def test_a_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "ram"
    before = os.umask(umask)
    try:
        with SharedMemory({"m": 8192}, {"m": str(path)}) as memory:
            found = os.stat(memory.paths["m"])
    finally:
        os.umask(before)
    assert (stat.S_IMODE(found.st_mode), found.st_size, found.st_blocks) == (0o600, 8192, 0)


def test_a_file_that_exists_keeps_its_length_its_mode_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"x" * 100)
    path.chmod(0o640)
    with SharedMemory({"m": 8192}, {"m": str(path)}):
        pass
    assert path.read_bytes() == b"x" * 100
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_files_that_were_made_have_their_names_once_they_are_kept(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("a", "b")}
    with SharedMemory({"a": 1, "b": 2}, paths) as memory:
        assert sorted(os.listdir(tmp_path)) == [".a.part", ".b.part"]
        assert sorted(memory.paths.values()) == [str(tmp_path / ".a.part"), str(tmp_path / ".b.part")]
    assert os.listdir(tmp_path) == []
    with SharedMemory({"a": 1, "b": 2}, paths) as memory, memory.keep():
        pass
    assert [os.stat(path).st_size for path in paths.values()] == [1, 2]


def test_one_that_somebody_else_removed_is_not_missed(tmp_path: Path) -> None:
    with SharedMemory({"m": 1}, {"m": str(tmp_path / "ram")}) as memory:
        os.unlink(memory.paths["m"])


def test_a_name_that_somebody_else_takes_meanwhile_stays_theirs(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("a", "b", "c")}

    def keep() -> None:
        with SharedMemory(dict.fromkeys(paths, 1), paths) as memory:
            (tmp_path / "b").write_bytes(b"theirs")
            with memory.keep():
                raise AssertionError

    with pytest.raises(RequestError, match="somebody else made it in the meantime"):
        keep()
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"theirs"


def test_files_lose_their_names_again_where_nobody_comes_to_live_in_them(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("a", "b")}

    def keep() -> None:
        with SharedMemory({"a": 1, "b": 2}, paths) as memory, memory.keep():
            raise HostError("no guest was let go")

    with pytest.raises(HostError, match="no guest was let go"):
        keep()
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_looked_at_is_not_taken_for_a_free_one(tmp_path: Path, refuse: Refuse) -> None:
    refuse(os, "lstat", errno.EIO)
    with pytest.raises(HostError, match=r"cannot look at .*: input/output error"):
        SharedMemory({"m": 1}, {"m": str(tmp_path / "ram")}).__enter__()
    assert os.listdir(tmp_path) == []


def test_other_memory_is_anonymous_and_gone_at_the_end() -> None:
    with SharedMemory({"m": 8192, "x" * 400: 4096}, {}) as memory:
        (first, second), paths = sorted(memory.descriptors), list(memory.paths.values())
        assert [os.fstat(fd).st_size for fd in (first, second)] == [8192, 4096]
        assert paths == [f"/proc/self/fd/{fd}" for fd in (first, second)]
        assert not os.get_inheritable(first)
        with memory.keep():
            pass
    assert memory.descriptors == set()


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SharedMemory({"m": 1}, {"m": "ram"}) as memory:
        assert memory.paths == {"m": str(tmp_path / ".ram.part")}


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with SharedMemory({"m": 1}, {"m": str(tmp_path / "link")}):
        pass
    assert os.listdir(tmp_path) == ["link"]


def test_what_was_made_before_an_error_is_gone(tmp_path: Path) -> None:
    paths = {"a": str(tmp_path / "a"), "b": str(tmp_path / "no" / "b")}
    with pytest.raises(NoFileError, match="cannot open the folder"):
        SharedMemory({"a": 1, "c": 1, "b": 1}, paths).__enter__()
    with pytest.raises(HostError, match="cannot size"):
        SharedMemory({"a": 1 << 62}, {"a": str(tmp_path / "a")}).__enter__()
    assert os.listdir(tmp_path) == []


def test_where_memory_cannot_be_had_nothing_stays_open(tmp_path: Path) -> None:
    def attempt() -> set[tuple[str, str]]:
        before = descriptors()
        with pytest.raises(HostError, match="cannot get 2 bytes of shared memory: cannot allocate memory"):
            SharedMemory({"a": 1, "c": 2}, {"a": str(tmp_path / "a")}).__enter__()
        return descriptors() ^ before

    found = answered(
        attempt, lambda call, _: Fail(errno.ENOMEM) if call.args[1] > 1 and call.name == "ftruncate" else None
    )
    assert len(found.faults) == 1
    assert found.value == set()
    assert os.listdir(tmp_path) == []
