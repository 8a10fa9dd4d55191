"""Memory of another process that cannot be had: its file may not be opened, it is of another user, or it is gone."""

import ctypes
import errno
import mmap
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.faults import Decide, Fail
from support.owned_memory import (
    Owner,
    address_of,
    anonymous,
    close_all,
    needs_map_files,
    owner,
)
from support.pictures import PAGE, draw, memfd, picture_of
from support.somebody_else import NOBODY
from support.system_calls import answered

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.open_files import written_files
from parallel_fixedram.host.memory import process_maps
from parallel_fixedram.host.memory.process_maps import Mapping, read_maps
from parallel_fixedram.host.memory.process_memory import ProcessSource, open_process_memory
from parallel_fixedram.host.memory.swapped import SwappedPages

libc = ctypes.CDLL(None, use_errno=True)


def test_a_file_that_may_not_be_opened_counts_as_data_below_a_private_mapping(tmp_path: Path) -> None:
    def seen() -> tuple[object, ...]:
        source = open_process_memory(child.pid, child.address, 4 * PAGE).source
        ranges = source.data_ranges(PageRange(1, 3)), source.newly_touched(PageBitmap(4))
        return source.tells_holes, *ranges, picture_of(source.pages(0, 4).tobytes())

    with (tmp_path / "ram").open("w+b") as file:
        draw(file.fileno(), "AB--")
        with owner(mmap.mmap(file.fileno(), 4 * PAGE, flags=mmap.MAP_PRIVATE), "-C") as child:
            found = answered(seen, refusing(f"/proc/{child.pid}/map_files", f"/proc/{child.pid}/fd/", str(tmp_path)))
    assert found.faults
    assert found.value == (False, [PageRange(1, 3)], [PageRange(0, 4)], "AC00")


def refusing(*parts: str) -> Decide:
    """There is no right to open paths with one of these parts."""
    return lambda call, _: (
        Fail(errno.EPERM) if call.name == "openat" and any(part in call.path for part in parts) else None
    )


@pytest.mark.parametrize("left", ["map_files", "a descriptor", "the path"])
def test_there_are_three_ways_to_a_shared_file(left: str) -> None:
    def seen() -> str:
        source = open_process_memory(child.pid, child.address + PAGE, 2 * PAGE).source
        source.open()
        return picture_of(source.pages(0, 2).tobytes())

    path = Path("/dev/shm") / f"ram-{os.getpid()}"
    file = path.open("w+b")
    draw(file.fileno(), "ABCD")
    view = mmap.mmap(file.fileno(), 3 * PAGE, offset=PAGE)
    with ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        keep = left == "a descriptor"
        child = stack.enter_context(owner(view, act=(lambda: None) if keep else (lambda: close_all(view))))
        file.close()
        if left == "map_files":
            needs_map_files()
            path.unlink()
            path.write_bytes(b"another file of that name" * PAGE)
        if left == "a descriptor":
            path.unlink()
        assert answered(seen, refusing(*["map_files"] * (left != "map_files"))).value == "CD"


def test_another_file_of_the_same_name_is_not_taken() -> None:
    path = Path("/dev/shm") / f"ram-{os.getpid()}"
    try:
        with path.open("w+b") as file:
            draw(file.fileno(), "AB")
            view = mmap.mmap(file.fileno(), 0)
        with owner(view, act=lambda: close_all(view)) as child:
            path.rename(f"{path}-old")
            path.write_bytes(bytes(2 * PAGE))
            with pytest.raises(HostError, match=r"cannot open the mapped file .*: operation not permitted") as caught:
                answered(
                    lambda: open_process_memory(child.pid, child.address, 2 * PAGE),
                    refusing("map_files", f"{path}-old"),
                )
            assert "CAP_CHECKPOINT_RESTORE" in caught.value.hint
    finally:
        path.unlink(missing_ok=True)
        Path(f"{path}-old").unlink(missing_ok=True)


def test_a_device_is_not_opened(tmp_path: Path) -> None:
    with open("/dev/zero", "r+b") as file:
        view = mmap.mmap(file.fileno(), PAGE, flags=mmap.MAP_PRIVATE)
        mappings = [each for each in read_maps(os.getpid()) if each.start <= address_of(view) < each.end]
    assert len(mappings) == 1
    node = Path("/dev/zero").stat()
    device = Mapping(
        start=1,
        end=2,
        permissions="rw-s",
        shared=True,
        offset=0,
        device=node.st_dev,
        inode=node.st_ino,
        path="/dev/zero",
    )
    with pytest.raises(HostError, match="'/dev/zero' is mapped and is not a regular file"):
        process_maps.open_mapped_file(os.getpid(), device)


def test_what_is_not_mapped_is_refused() -> None:
    view = anonymous(8)

    def punch() -> None:
        assert libc.munmap(ctypes.c_void_p(address_of(view) + 3 * PAGE), ctypes.c_size_t(PAGE)) == 0

    with owner(view, "ABCDEFGH", punch) as child:
        for first, count in ((0, 8), (3, 1), (2, 2), (3, 2)):
            with pytest.raises(HostError, match=rf"process {child.pid}: addresses 0x\w+ to 0x\w+ are not mapped$"):
                open_process_memory(child.pid, child.address + first * PAGE, count * PAGE)
        with pytest.raises(HostError, match="are not mapped"):
            open_process_memory(child.pid, PAGE, PAGE)
        for address, length in ((child.address + 1, PAGE), (child.address, 100), (child.address, 0)):
            with pytest.raises(HostError, match="are not whole pages of 4096 bytes"):
                open_process_memory(child.pid, address, length)
        open_process_memory(child.pid, child.address + 4 * PAGE, 4 * PAGE).source.close()


def test_neighbours_that_have_nothing_to_do_with_each_other_are_refused() -> None:
    fd = memfd("ABCD")
    view = anonymous(4)
    flags = mmap.MAP_SHARED | 0x10  # MAP_FIXED, which Python does not name
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)

    def replace(index: int, offset: int) -> Callable[[], object]:
        return lambda: libc.mmap(address_of(view) + index * PAGE, PAGE, mmap.PROT_READ, flags, fd, offset * PAGE)

    def both() -> None:
        replace(0, 0)()
        replace(1, 2)()

    for act in (replace(1, 0), both):
        with owner(view, "", act) as child, pytest.raises(HostError, match="are not one piece of memory"):
            open_process_memory(child.pid, child.address, 2 * PAGE)
    os.close(fd)


def test_what_was_unmapped_after_it_was_opened_is_an_error_that_says_where() -> None:
    with owner(anonymous(4), "ABCD") as child:
        source = ProcessSource(child.pid, 0x10000, 4 * PAGE)
        with pytest.raises(HostError, match=rf"memory of process {child.pid} at 0x11000: bad address"):
            source.pages(1, 2)


def test_reading_stops_at_a_page_that_cannot_be_read() -> None:
    view = anonymous(4)
    with owner(view, "ABCD", lambda: libc.munmap(ctypes.c_void_p(address_of(view) + 2 * PAGE), PAGE)) as child:
        source = ProcessSource(child.pid, child.address, 4 * PAGE)
        assert picture_of(source.pages(0, 2).tobytes()) == "AB"
        with pytest.raises(HostError, match=rf"at {child.address + 2 * PAGE:#x}: bad address"):
            source.pages(0, 4)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_is_gone_is_said_to_be_gone(reaped: bool) -> None:
    with owner(anonymous(4), "A") as child:
        source = open_process_memory(child.pid, child.address, 4 * PAGE).source
        if reaped:
            child.end()
        else:
            os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        gone = f"^process {child.pid} has ended$"
        with pytest.raises(MachineError, match=gone):
            source.open()
        with pytest.raises(MachineError, match=gone):
            source.pages(0, 1)
        with pytest.raises(MachineError, match=gone):
            source.data_ranges(PageRange(0, 4))
        with pytest.raises(MachineError, match=gone):
            source.newly_touched(PageBitmap(4))
        with pytest.raises(MachineError, match=gone):
            open_process_memory(child.pid, child.address, 4 * PAGE)


def test_a_process_that_ends_while_its_page_tables_are_read_has_not_lost_its_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with owner(anonymous(4), "A") as child:
        real = linux.pagemap_scan

        def scan(*args: object) -> int:
            child.end()
            return real(*args)

        monkeypatch.setattr(linux, "pagemap_scan", scan)
        source = ProcessSource(child.pid, child.address, 4 * PAGE)
        with pytest.raises(MachineError, match="has ended"):
            source.data_ranges(PageRange(0, 4))


def said_by_nobody(act: Callable[[], object]) -> str:
    """What a fork that runs as another user is told: the error, and the hint behind it."""
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                act()
                os.write(mouth, b"no error")
            except HostError as error:
                os.write(mouth, f"{error.message} | {error.hint}".encode())
            except BaseException as error:
                os.write(mouth, repr(error).encode())
        finally:
            os._exit(0)
    os.close(mouth)
    os.waitpid(pid, 0)
    with open(ear, "rb") as file:
        said = file.read().decode()
    if not said:
        pytest.skip("only root can become another user")
    return said


def test_a_process_that_has_ended_and_was_not_reaped_has_ended_for_those_too_who_had_no_right_to_it() -> None:
    view = mmap.mmap(-1, 4 * PAGE)
    with owner(view) as child, owner(anonymous(4), "A") as other:
        private = open_process_memory(other.pid, other.address, 4 * PAGE).source
        shared = next(each for each in read_maps(child.pid) if each.start == child.address)
        for each in (child, other):
            os.kill(each.pid, signal.SIGKILL)
            os.waitid(os.P_PID, each.pid, os.WEXITED | os.WNOWAIT)
        asked: list[tuple[Owner, Callable[[], object]]] = [
            (child, lambda: read_maps(child.pid)),
            (child, lambda: process_maps.open_mapped_file(child.pid, shared)),
            (child, lambda: open_process_memory(child.pid, child.address, 4 * PAGE)),
            (child, lambda: written_files(child.pid)),
            (child, lambda: SwappedPages(child.pid)),
            (other, private.open),
            (other, lambda: private.pages(0, 1)),
            (other, lambda: private.data_ranges(PageRange(0, 4))),
            (other, lambda: private.newly_touched(PageBitmap(4))),
        ]
        assert [said_by_nobody(ask) for _, ask in asked] == [
            repr(MachineError(f"process {each.pid} has ended")) for each, _ in asked
        ]


def test_another_users_process_is_refused_with_the_right_that_is_missing() -> None:
    with owner(anonymous(4), "A") as child:
        source = open_process_memory(child.pid, child.address, 4 * PAGE).source
        said = said_by_nobody(lambda: open_process_memory(child.pid, child.address, 4 * PAGE))
        assert said.startswith(
            f"cannot read the memory map of process {child.pid}: permission denied | it takes CAP_SYS"
        )
        said = said_by_nobody(source.open)
        assert said.startswith(f"cannot read memory of process {child.pid}: operation not permitted | it takes CAP_SYS")
        said = said_by_nobody(lambda: source.pages(0, 1))
        assert f"process {child.pid} at {child.address:#x}: operation not permitted | it takes CAP_SYS" in said
        said = said_by_nobody(lambda: source.data_ranges(PageRange(0, 4)))
        assert "page tables" in said
        assert "| it takes CAP_SYS" in said
        assert all("\n" not in each for each in said.split("|"))


def test_a_shared_file_of_another_user_is_refused_with_the_right_that_is_missing() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        draw(file.fileno(), "AB")
        view = mmap.mmap(file.fileno(), 0)
        mapping = next(each for each in read_maps(os.getpid()) if each.start == address_of(view))
        said = said_by_nobody(lambda: process_maps.open_mapped_file(os.getppid(), mapping))
        assert said.startswith(f"process {os.getpid()}: cannot open the mapped file '/dev/shm/")
        assert " | it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE" in said
