"""Memory of a child process, reached from outside; the tests write to it through /proc/PID/mem, as the child would."""

import ctypes
import errno
import mmap
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.conformance import DRAWN, Drawn, PageSourceConformance, covered, data_map
from support.faults import Decide, Fail
from support.pictures import PAGE, allocated_pages, content, draw, memfd, page, picture_of
from support.refusing import Refuse
from support.sources import huge_file
from support.system_calls import answered

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.open_files import written_files
from parallel_fixedram.host.memory import pagemap, process_maps
from parallel_fixedram.host.memory.copied_source import CopiedSource
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.process_maps import Mapping, read_maps
from parallel_fixedram.host.memory.process_memory import MemoryKind, ProcessSource, open_process_memory
from parallel_fixedram.host.memory.swapped import SwappedPages

NOBODY = 65534
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
libc = ctypes.CDLL(None, use_errno=True)


def address_of(view: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def paint(view: mmap.mmap, picture: str) -> None:
    """Write what is drawn, touch nothing else."""
    for index, letter in enumerate(picture):
        if letter != "-":
            view[index * PAGE : (index + 1) * PAGE] = page(letter)


@dataclass
class Owner:
    """A process that owns memory and sleeps."""

    pid: int
    address: int
    mem: int
    """Its memory as a file."""

    def memory_pages(self) -> int:
        """Pages of private memory it has."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024 // PAGE

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@contextmanager
def owner(view: mmap.mmap, picture: str = "", act: Callable[[], object] = lambda: None) -> Iterator[Owner]:
    """A fork that has ``view``, paints it, acts, and sleeps until it is killed."""
    address = address_of(view)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            paint(view, picture)
            act()
            os.write(tell, b"r")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"r"
        mem = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        child = Owner(pid, address, mem)
        try:
            yield child
        finally:
            os.close(mem)
    finally:
        os.close(ready)
        with_child_gone(pid)


def with_child_gone(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def anonymous(pages: int, flags: int = PRIVATE) -> mmap.mmap:
    view = mmap.mmap(-1, pages * PAGE, flags=flags)
    if flags == PRIVATE:
        view.madvise(mmap.MADV_NOHUGEPAGE)
    return view


@contextmanager
def drawn_in(view: mmap.mmap, kind: MemoryKind, *, picture: str = DRAWN, skip: int = 0) -> Iterator[Drawn]:
    """The picture in memory of a child, from page ``skip`` on, reached from outside."""
    with owner(view, "-" * skip + picture) as child:
        address = child.address + skip * PAGE
        memory = open_process_memory(child.pid, address, len(DRAWN) * PAGE)
        assert (memory.kind, memory.host_page_size) == (kind, PAGE)
        yield Drawn(memory.source, DRAWN, child.mem, address)
        memory.source.close()


class TestPrivateMemory(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        with drawn_in(anonymous(len(DRAWN)), MemoryKind.PRIVATE) as drawn:
            assert isinstance(drawn.source, ProcessSource)
            yield drawn


class TestPrivateMemoryOnAnOlderKernel(PageSourceConformance):
    @pytest.fixture
    def drawn(self, refuse: Refuse) -> Iterator[Drawn]:
        refuse(linux, "pagemap_scan", errno.ENOTTY)
        with drawn_in(anonymous(len(DRAWN) + 7), MemoryKind.PRIVATE, skip=5) as drawn:
            yield drawn


class TestPrivateMappingOfAFile(PageSourceConformance):
    """One half of the picture is in the file, the other in pages of the process."""

    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            draw(file.fileno(), DRAWN[:5] + "-" * (len(DRAWN) - 5), offset=3 * PAGE)
            view = mmap.mmap(file.fileno(), len(DRAWN) * PAGE, flags=mmap.MAP_PRIVATE, offset=3 * PAGE)
            with drawn_in(view, MemoryKind.PRIVATE, picture="-----" + DRAWN[5:]) as drawn:
                yield drawn


class TestSharedMemfd(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        fd = os.memfd_create("ram")
        os.ftruncate(fd, len(DRAWN) * PAGE)
        view = mmap.mmap(fd, 0)
        with drawn_in(view, MemoryKind.SHARED) as drawn:
            assert isinstance(drawn.source, MappedSource)
            drawn.fd, drawn.offset = fd, 0
            yield drawn
        os.close(fd)


class TestSharedMemoryWithoutAName(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        needs_map_files()
        with drawn_in(anonymous(len(DRAWN) + 9, SHARED), MemoryKind.SHARED, skip=9) as drawn:
            yield drawn


class TestSharedFileOnTmpfs(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            file.truncate((len(DRAWN) + 2) * PAGE)
            view = mmap.mmap(file.fileno(), len(DRAWN) * PAGE, offset=2 * PAGE)
            with drawn_in(view, MemoryKind.SHARED) as drawn:
                drawn.fd, drawn.offset = file.fileno(), 2 * PAGE
                yield drawn


class TestSharedHugePages(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        with huge_file(2) as file, owner(mmap.mmap(file.fd, file.size), DRAWN) as child:
            memory = open_process_memory(child.pid, child.address, file.size)
            assert isinstance(memory.source, CopiedSource)
            assert (memory.kind, memory.host_page_size) == (MemoryKind.HUGE, file.page_size)
            yield Drawn(memory.source, DRAWN, child.mem, child.address, exact=False)
            memory.source.close()


def needs_map_files() -> None:
    try:
        os.stat(f"/proc/self/map_files/{os.listdir('/proc/self/map_files')[0]}")
    except PermissionError as error:
        pytest.skip(f"map_files may not be opened: {error}")


def test_private_huge_pages_are_copied_and_only_those_written_count() -> None:
    with huge_file(2) as file:
        view = mmap.mmap(file.fd, file.size, flags=mmap.MAP_PRIVATE)
        small = file.page_size // PAGE
        with owner(view, "-" * small + "AB") as child:
            memory = open_process_memory(child.pid, child.address, file.size)
            assert (memory.kind, memory.host_page_size) == (MemoryKind.PRIVATE, file.page_size)
            assert memory.source.tells_holes
            assert memory.source.data_ranges(PageRange(0, 2 * small)) == [PageRange(small, small)]
            assert picture_of(memory.source.pages(small, 3).tobytes()) == "AB0"
            memory.source.close()


def test_reading_what_was_never_touched_takes_nothing_from_the_process_and_is_no_data_afterwards() -> None:
    with owner(anonymous(1024), "AB") as child:
        source = open_process_memory(child.pid, child.address, 1024 * PAGE).source
        before = child.memory_pages()
        assert covered(source.data_ranges(PageRange(0, 1024))) == [0, 1]
        assert not source.pages(2, 1022).any()
        assert child.memory_pages() == before
        assert covered(source.data_ranges(PageRange(0, 1024))) == [0, 1]


def test_asking_and_reading_data_takes_nothing_from_the_process_and_from_a_file_it_maps() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        draw(file.fileno(), "AB" + "-" * 62)
        with owner(mmap.mmap(file.fileno(), 64 * PAGE, flags=mmap.MAP_PRIVATE), "----CD--E") as child:
            before = (child.memory_pages(), allocated_pages(file.fileno()))
            source = open_process_memory(child.pid, child.address, 64 * PAGE).source
            for each in source.data_ranges(PageRange(0, 64)):
                source.pages(each.first, each.count)
            assert covered(source.newly_touched(PageBitmap(64))) == [0, 1, 4, 5, 8]
            assert (child.memory_pages(), allocated_pages(file.fileno())) == before
            source.close()


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


def close_all(view: mmap.mmap) -> None:
    """Close every descriptor but those that a test needs to hear of the child; the mapping stays."""
    assert len(view)
    for name in os.listdir("/proc/self/fd"):
        target = f"/proc/self/fd/{name}"
        if os.path.lexists(target) and os.readlink(target).startswith("/dev/shm/"):
            os.close(int(name))


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


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_a_block_may_lie_in_several_mappings(flags: int) -> None:
    if flags == SHARED:
        needs_map_files()
    view = anonymous(64, flags)

    def split() -> None:
        view.madvise(mmap.MADV_DONTDUMP, 20 * PAGE, 10 * PAGE)
        view.madvise(mmap.MADV_DONTFORK, 40 * PAGE, 1 * PAGE)

    picture = "A" * 19 + "BCD" + "-" * 17 + "EFG" + "-" * 21 + "H"
    with owner(view, picture, split) as child:
        parts = [m for m in read_maps(child.pid) if m.start < child.address + 64 * PAGE and m.end > child.address]
        assert len(parts) >= 5
        source = open_process_memory(child.pid, child.address, 64 * PAGE).source
        source.open()
        assert covered(source.data_ranges(PageRange(0, 64))) == [i for i, x in enumerate(picture) if x != "-"]
        assert source.pages(0, 64)[:42].tobytes() == content(picture[:42])
        part = open_process_memory(child.pid, child.address + 21 * PAGE, PAGE).source
        part.open()
        assert picture_of(part.pages(0, 1).tobytes()) == "D"
        part.close()
        source.close()


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


def test_a_line_of_the_map_is_understood_with_blanks_in_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a  file\rof (two) words "
    path.write_bytes(bytes(3 * PAGE))
    with path.open("r+b") as file:
        view = mmap.mmap(file.fileno(), 2 * PAGE, offset=PAGE)
        status = os.fstat(file.fileno())
    found = next(each for each in read_maps(os.getpid()) if each.start == address_of(view))
    assert (found.end - found.start, found.shared, found.offset, found.path) == (2 * PAGE, True, PAGE, str(path))
    assert found.inode == status.st_ino


@given(st.sampled_from([1, 63, 64, 65, 3000]), st.integers(1, 30), st.integers(0, 2**32))
def test_the_ioctl_and_the_list_say_the_same(pages: int, rarity: int, seed: int) -> None:
    wanted = np.random.default_rng(seed).integers(0, rarity, pages) == 0
    view = anonymous(pages)
    start = address_of(view)
    for index in np.flatnonzero(wanted).tolist():
        view[index * PAGE] = 1
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    assert np.array_equal(pagemap._listed(fd, start, pages, True), wanted)
    with pytest.MonkeyPatch.context() as patch:
        for regions in (1 << 15, 3, 1):
            patch.setattr(pagemap, "_REGIONS", regions)
            assert np.array_equal(pagemap._scanned(fd, start, pages, True), wanted)
        patch.setattr(pagemap, "_CHUNK_PAGES", 64)
        found = pagemap.occupied(os.getpid(), start, pages)
    assert np.array_equal(found.bits(0, len(found.words)), wanted)
    os.close(fd)


@given(st.integers(1, 30), st.integers(1, 300), st.integers(0, 2**32))
def test_what_grew_is_what_the_map_did_not_have(before: int, after: int, seed: int) -> None:
    pages = 700
    random = np.random.default_rng(seed)
    view = anonymous(pages)
    with owner(view, "".join("-A"[bit] for bit in (random.integers(0, before, pages) == 0).tolist())) as child:
        source = open_process_memory(child.pid, child.address, pages * PAGE).source
        drawn = Drawn(source, "?" * pages, child.mem, child.address)
        data = data_map(drawn)
        for index in np.flatnonzero(random.integers(0, after, pages) == 0).tolist():
            os.pwrite(child.mem, b"x", child.address + index * PAGE)
        now = set(covered(source.data_ranges(PageRange(0, pages))))
        assert covered(source.newly_touched(data)) == sorted(now - set(covered(data.ranges())))


def test_more_regions_than_the_kernel_passes_on_at_once_are_each_counted_once() -> None:
    """The place the kernel says it came to is before the end then (see linux.pagemap_scan)."""
    pages = 4096
    view = anonymous(pages)
    for index in range(0, pages, 2):
        view[index * PAGE] = 1
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    assert pagemap._scanned(fd, address_of(view), pages, True).tolist() == [1, 0] * (pages // 2)
    os.close(fd)


def test_opening_and_closing_leaves_no_descriptor() -> None:
    fd = memfd("AB")
    with ExitStack() as stack:
        views = (mmap.mmap(fd, 0), anonymous(2), mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE))
        children = [stack.enter_context(owner(view)) for view in views]
        before = set(os.listdir("/proc/self/fd"))
        for child in children:
            source = open_process_memory(child.pid, child.address, 2 * PAGE).source
            source.open()
            source.data_ranges(PageRange(0, 2))
            source.newly_touched(PageBitmap(2))
            source.close()
            source.close()
        assert set(os.listdir("/proc/self/fd")) == before
    os.close(fd)
