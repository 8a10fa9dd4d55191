"""Memory of a child process, read from outside."""

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.conformance import DRAWN, Drawn, PageSourceConformance, covered, data_map
from support.owned_memory import (
    PRIVATE,
    SHARED,
    address_of,
    anonymous,
    needs_map_files,
    owner,
)
from support.pictures import PAGE, allocated_pages, content, draw, memfd, picture_of
from support.refusing import Refuse
from support.sources import huge_file

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import pagemap
from parallel_fixedram.host.memory.copied_source import CopiedSource
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.process_maps import read_maps
from parallel_fixedram.host.memory.process_memory import MemoryKind, ProcessSource, open_process_memory


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
