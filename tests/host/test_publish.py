import errno
import fcntl
import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faults import Call, Fail, Run
from support.leftovers import descriptors
from support.pictures import PAGE, allocated_pages, content
from support.refusing import Refuse
from support.system_calls import answered

from parallel_fixedram.core.errors import CapabilityError, DurabilityError, HostError, NoFileError, RequestError
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.publish import PendingFile, check_target, copy_prefix
from parallel_fixedram.host.files.space import Space


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "NAME"


@pytest.fixture(scope="module", autouse=True)
def _leftovers_of_others_are_gone() -> None:
    """A mapping has a descriptor of its own, and one in a cycle keeps it until somebody collects garbage."""
    gc.collect()


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def enter(pending: PendingFile) -> None:
    with pending:
        pass


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def write_and_publish(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    with PendingFile(str(path), overwrite=overwrite) as pending:
        pending.channel.write(0, memoryview(data))
        pending.channel.sync()
        pending.publish()
        pending.sync_folder()


def test_the_final_name_appears_when_the_file_is_published_and_the_other_name_is_gone(path: Path) -> None:
    with PendingFile(str(path)) as pending:
        pending.channel.write(0, memoryview(b"all"))
        assert names(path) == [".NAME.part"]
        pending.publish()
        assert names(path) == ["NAME"]
    assert path.read_bytes() == b"all"


def test_a_name_without_a_folder_means_the_current_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with PendingFile("NAME") as pending:
        pending.publish()
        pending.sync_folder()
    assert names(path) == ["NAME"]


def test_the_folder_may_be_renamed_meanwhile(path: Path) -> None:
    with PendingFile(str(path)) as pending:
        moved = path.parent.rename(path.parent.parent / "moved")
        pending.publish()
    assert os.listdir(moved) == ["NAME"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_leaving_without_publishing_leaves_nothing(path: Path, overwrite: bool) -> None:
    with PendingFile(str(path), overwrite=overwrite) as pending:
        pending.channel.write(0, memoryview(b"half"))
    assert names(path) == []


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_the_file_is_private_from_the_start_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with PendingFile(str(path)) as pending:
            assert part_of(path).stat().st_mode & 0o7777 == 0o600
            pending.publish()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600


def test_an_overwritten_file_does_not_pass_on_its_mode(path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_and_publish(path, b"new", overwrite=True)
    assert path.stat().st_mode & 0o7777 == 0o600


def test_an_existing_name_is_refused_before_anything_is_made(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(RequestError, match=r"NAME' exists") as caught:
        enter(PendingFile(str(path)))
    assert "--overwrite" in caught.value.hint
    assert (names(path), path.read_bytes()) == (["NAME"], b"old")


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(path: Path) -> None:
    with PendingFile(str(path)) as pending:
        path.write_bytes(b"theirs")
        with pytest.raises(RequestError, match="exists"):
            pending.publish()
    assert (names(path), path.read_bytes()) == (["NAME"], b"theirs")


def test_the_old_file_stays_whole_until_the_new_one_takes_its_name(path: Path) -> None:
    path.write_bytes(b"old")
    with PendingFile(str(path), overwrite=True) as pending, path.open("rb") as reader:
        pending.channel.write(0, memoryview(b"new!"))
        assert path.read_bytes() == b"old"
        pending.publish()
        assert path.read_bytes() == b"new!"
        assert reader.read() == b"old"
    assert names(path) == ["NAME"]


def test_a_link_planted_under_the_name_of_the_part_is_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    part_of(path).symlink_to(victim)
    with pytest.raises(HostError, match=r"cannot replace '\.NAME\.part'") as caught:
        enter(PendingFile(str(path)))
    assert caught.value.errno == errno.ELOOP
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_a_link_planted_under_the_final_name_is_taken_or_replaced_but_never_followed(
    path: Path, tmp_path: Path, target: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(tmp_path / target)
    with pytest.raises(RequestError, match="exists"):
        enter(PendingFile(str(path)))
    write_and_publish(path, b"new", overwrite=True)
    assert not path.is_symlink()
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"precious")


def test_a_link_planted_meanwhile_is_not_overwritten(path: Path, tmp_path: Path) -> None:
    with PendingFile(str(path)) as pending:
        path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(RequestError, match="exists"):
            pending.publish()
    assert not (tmp_path / "nowhere").exists()


def test_a_part_whose_writer_is_gone_is_replaced_by_a_new_file(path: Path) -> None:
    part_of(path).write_bytes(b"stale and long")
    part_of(path).chmod(0o644)
    with part_of(path).open("rb") as stale, PendingFile(str(path)) as pending:
        assert os.fstat(pending.fd).st_ino != os.fstat(stale.fileno()).st_ino
        pending.publish()
        assert stale.read() == b"stale and long"
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"", 0o600)


def test_a_second_name_left_by_a_writer_that_died_while_publishing_is_removed(path: Path) -> None:
    path.write_bytes(b"complete")
    os.link(path, part_of(path))
    write_and_publish(path, b"new", overwrite=True)
    assert (names(path), path.read_bytes()) == (["NAME"], b"new")


def test_a_part_that_another_process_is_writing_is_left_alone(path: Path) -> None:
    ready, written = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        with PendingFile(str(path)) as pending:
            pending.channel.write(0, memoryview(b"theirs"))
            os.write(written, b"x")
            os.read(hold, 1)
            os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(HostError, match="is being written by another process") as caught:
            enter(PendingFile(str(path), overwrite=True))
        assert caught.value.errno == errno.EBUSY
        assert part_of(path).read_bytes() == b"theirs"
    finally:
        for fd in (ready, written, hold, release):
            os.close(fd)
        os.waitpid(pid, 0)
    write_and_publish(path, b"ours")  # its writer is gone now
    assert names(path) == ["NAME"]


def test_a_part_that_is_replaced_between_two_looks_is_never_shared(path: Path) -> None:
    """Another writer takes our new file for a stale one before it is locked: we start anew."""
    others = [True]

    def overtake(call: Call, _: Run) -> None:
        if call.name == "flock" and others and others.pop():
            part_of(path).unlink()

    def act() -> None:
        with PendingFile(str(path)) as pending:
            assert os.fstat(pending.fd).st_nlink == 1
            assert part_of(path).stat().st_ino == os.fstat(pending.fd).st_ino
            pending.publish()

    answered(act, overtake, under=str(path.parent))
    assert not others


def test_a_folder_under_the_name_of_the_part_is_an_error_and_stays(path: Path) -> None:
    part_of(path).mkdir()
    with pytest.raises(HostError, match=r"cannot replace '\.NAME\.part'"):
        enter(PendingFile(str(path)))
    assert names(path) == [".NAME.part"]


def test_a_file_system_without_locks_is_an_error_that_leaves_nothing(path: Path, refuse: Refuse) -> None:
    refuse(fcntl, "flock", errno.ENOLCK)
    with pytest.raises(HostError) as caught:
        enter(PendingFile(str(path)))
    assert caught.value.errno == errno.ENOLCK
    assert names(path) == []


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", [os.mkfifo, make_socket])
def test_pipes_and_sockets_cannot_seek_and_stay_as_they_are(
    path: Path, make: Callable[[Path], None], overwrite: bool
) -> None:
    make(path)
    with pytest.raises(CapabilityError, match=r"^Migration requires seekable transport \(e\.g\. file\)$"):
        enter(PendingFile(str(path), overwrite=overwrite))
    assert names(path) == ["NAME"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_and_devices_are_no_files(path: Path, overwrite: bool) -> None:
    path.mkdir()
    for name in (str(path), str(path.parent)):
        with pytest.raises(RequestError, match="is a folder"):
            enter(PendingFile(name, overwrite=overwrite))
    for name in ("/dev/null", "/dev/zero"):
        with pytest.raises(RequestError, match="is not a regular file"):
            enter(PendingFile(name, overwrite=overwrite))
    for name in (f"{path}/", ".", "..", "/", ""):
        with pytest.raises(RequestError):
            enter(PendingFile(name, overwrite=overwrite))


def test_a_folder_that_is_none_is_an_error(path: Path) -> None:
    with pytest.raises(NoFileError, match="cannot open the folder"):
        enter(PendingFile(str(path.parent / "missing" / "NAME")))
    path.write_bytes(b"")
    with pytest.raises(NoFileError) as caught:
        enter(PendingFile(str(path / "below")))
    assert caught.value.errno == errno.ENOTDIR


def test_a_name_that_is_too_long_is_an_error(path: Path) -> None:
    for name in ("n" * 255, "n" * 256):
        with pytest.raises(NoFileError) as caught:
            enter(PendingFile(str(path.with_name(name))))
        assert caught.value.errno == errno.ENAMETOOLONG


def test_looking_at_a_target_makes_nothing(path: Path) -> None:
    check_target(str(path), overwrite=False)
    assert names(path) == []


def test_a_failing_rename_leaves_the_old_file_and_nothing_else(path: Path, refuse: Refuse) -> None:
    path.write_bytes(b"old")
    refuse(os, "rename", errno.EIO)
    with pytest.raises(HostError, match="cannot rename .* to"):  # noqa: SIM117, RUF043
        with PendingFile(str(path), overwrite=True) as pending:
            pending.publish()
    assert (names(path), path.read_bytes()) == (["NAME"], b"old")


def test_a_folder_that_cannot_be_synced_is_its_own_error_and_the_file_stays(path: Path, refuse: Refuse) -> None:
    with PendingFile(str(path)) as pending:
        pending.publish()
        refuse(os, "fsync", errno.EIO)
        with pytest.raises(DurabilityError) as caught:
            pending.sync_folder()
    assert (caught.value.errno, caught.value.exit_code) == (errno.EIO, 6)
    assert names(path) == ["NAME"]


def test_the_file_that_is_replaced_is_freed_only_when_the_folder_is_synced(path: Path) -> None:
    """Freeing a large file takes seconds on some disks, and would belong to the rename or to that sync."""
    path.write_bytes(b"old")
    old = os.stat(path)
    happened: list[str] = []

    def held_by(pid: int) -> bool:
        return any(is_old(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))

    def is_old(link: str) -> bool:
        try:
            return os.path.samestat(os.stat(link), old)
        except OSError:  # the listing's own
            return False

    def watch(call: Call, _: Run) -> None:
        if call.name.startswith("rename") or call.name == "fsync":
            happened.append(f"{call.name[:6]}, {'held' if held_by(call.pid) else 'gone'}")

    def act() -> tuple[bool, bool]:
        with PendingFile(str(path), overwrite=True) as pending:
            pending.publish()
            pending.sync_folder()
            before = held_by(os.getpid())
        return before, held_by(os.getpid())

    assert answered(act, watch, under=str(path.parent)).value == (True, False)
    assert happened == ["rename, held", "fsync, held"]


def test_a_replaced_file_that_cannot_be_opened_is_replaced_all_the_same(path: Path) -> None:
    path.write_bytes(b"old")
    written: list[bool] = []

    def refuse(call: Call, _: Run) -> Fail | None:
        written.extend([True] * (call.name == "pwrite64"))
        return Fail(errno.EACCES) if written and (call.name, call.path) == ("openat", str(path)) else None

    def act() -> None:
        with PendingFile(str(path), overwrite=True) as pending:
            pending.channel.write(0, memoryview(b"new"))
            pending.publish()
            pending.sync_folder()

    assert answered(act, refuse, under=str(path.parent)).faults
    assert path.read_bytes() == b"new"


def test_a_pipe_that_took_the_name_meanwhile_does_not_hold_up_who_replaces_it(path: Path) -> None:
    with PendingFile(str(path), overwrite=True) as pending:
        os.mkfifo(path)
        pending.publish()
        pending.sync_folder()
    assert path.is_file()


def test_a_replaced_file_with_another_name_keeps_all_it_has(path: Path) -> None:
    path.write_bytes(b"old")
    os.link(path, path.with_name("another"))
    write_and_publish(path, b"new", overwrite=True)
    assert (path.with_name("another").read_bytes(), path.read_bytes()) == (b"old", b"new")


def test_reserving_takes_space_and_keeps_the_size(path: Path) -> None:
    with PendingFile(str(path)) as pending:
        pending.set_size(8 * PAGE)
        Space(pending.channel).reserve(2 * PAGE, 3 * PAGE)
        assert (allocated_pages(pending.fd), os.fstat(pending.fd).st_size) == (3, 8 * PAGE)


def test_more_than_there_is_cannot_be_reserved(path: Path) -> None:
    space = os.statvfs(path.parent)
    with PendingFile(str(path)) as pending:
        with pytest.raises(HostError, match="cannot reserve") as caught:
            Space(pending.channel).reserve(0, 2 * space.f_blocks * space.f_frsize)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert names(path) == []


def test_a_file_system_that_cannot_reserve_is_taken_as_it_is(path: Path, refuse: Refuse) -> None:
    refuse(linux, "fallocate", errno.EOPNOTSUPP)
    with PendingFile(str(path)) as pending:
        Space(pending.channel).reserve(0, PAGE)
        assert allocated_pages(pending.fd) == 0


def test_direct_io_is_a_second_descriptor_of_the_same_file(path: Path) -> None:
    with PendingFile(str(path)) as pending:
        channel = pending.open_direct()
        if channel is None:
            pytest.skip("no direct I/O here")
        assert fcntl.fcntl(channel.fd, fcntl.F_GETFL) & os.O_DIRECT
        assert os.fstat(channel.fd).st_ino == os.fstat(pending.fd).st_ino


@pytest.mark.parametrize(("refusal", "fatal"), [(errno.EINVAL, False), (errno.EOPNOTSUPP, False), (errno.EMFILE, True)])
def test_a_refusal_of_direct_io_is_told_from_other_errors(
    path: Path, refuse_direct_io: Callable[[int], None], refusal: int, fatal: bool
) -> None:
    refuse_direct_io(refusal)
    with PendingFile(str(path)) as pending:
        if fatal:
            with pytest.raises(HostError, match="for direct I/O"):
                pending.open_direct()
        else:
            assert pending.open_direct() is None


@pytest.mark.parametrize("length", [1, PAGE, 5000, 3 << 20])
def test_the_beginning_of_the_old_file_can_be_taken_over(path: Path, length: int) -> None:
    old = os.urandom(2 << 20)
    path.write_bytes(old)
    with PendingFile(str(path), overwrite=True) as pending:
        copy_prefix(str(path), length, pending.channel)
        pending.publish()
    assert path.read_bytes() == old[:length]


def test_where_there_is_no_old_file_its_beginning_is_empty(path: Path) -> None:
    with PendingFile(str(path)) as pending:
        copy_prefix(str(path), PAGE, pending.channel)
        pending.channel.write(PAGE, memoryview(content("A")))
        pending.publish()
    assert path.read_bytes() == bytes(PAGE) + content("A")
