import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.conformance import DRAWN, Drawn, PageSourceConformance
from support.pictures import PAGE, allocated_pages, content, draw, memfd, picture_of
from support.sources import huge_file

from parallel_fixedram.core.errors import HostError, NoFileError, RequestError
from parallel_fixedram.core.protocols import PageSource
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.units import GIB
from parallel_fixedram.host.memory import mapped_source
from parallel_fixedram.host.memory.copied_source import CopiedSource
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.ram_file import open_ram_file


def mapped(fd: int, *, offset: int = 0) -> Drawn:
    source = MappedSource(fd, offset=offset, length=len(DRAWN) * PAGE)
    return Drawn(source, DRAWN, fd, offset)


class TestMappedSourceOnMemfd(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        drawn = mapped(memfd(DRAWN))
        yield drawn
        drawn.source.close()
        os.close(drawn.fd)


class TestMappedSourceOnTmpfs(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            draw(file.fileno(), DRAWN)
            drawn = mapped(file.fileno())
            yield drawn
            drawn.source.close()


class TestMappedSourceInTheMiddleOfAnOrdinaryFile(PageSourceConformance):
    @pytest.fixture
    def drawn(self, tmp_path: Path) -> Iterator[Drawn]:
        with (tmp_path / "ram").open("w+b") as file:
            draw(file.fileno(), DRAWN, offset=3 * PAGE)
            os.pwrite(file.fileno(), b"before", 0)
            os.pwrite(file.fileno(), b"after", (3 + len(DRAWN)) * PAGE)
            drawn = mapped(file.fileno(), offset=3 * PAGE)
            yield drawn
            drawn.source.close()


class TestCopiedSource(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        fd = memfd(DRAWN)
        source = CopiedSource(fd)
        yield Drawn(source, DRAWN, fd, exact=False)
        source.close()
        os.close(fd)


class TestCopiedSourceOnHugePages(PageSourceConformance):
    @pytest.fixture
    def drawn(self) -> Iterator[Drawn]:
        with huge_file(2) as file:
            file.draw(DRAWN)
            source, length, page_size = open_ram_file(f"/proc/self/fd/{file.fd}")
            assert isinstance(source, CopiedSource)
            assert (length, page_size) == (file.size, file.page_size)
            yield Drawn(source, DRAWN, file.fd, exact=False)
            source.close()

    def test_data_ranges_can_be_asked_before_open_and_after_a_page_was_touched(self, drawn: Drawn) -> None:
        assert drawn.source.data_ranges(PageRange(66, 100)) == [PageRange(66, 100)]

    def test_it_reads_memory_as_it_is_now(self, drawn: Drawn) -> None:
        drawn.source.open()
        with mmap.mmap(drawn.fd, 0) as view:  # hugetlbfs has no pwrite
            view[:PAGE] = content("Q")
        assert picture_of(drawn.source.pages(0, 1).tobytes()) == "Q"


def test_a_copied_page_is_valid_until_the_next_call_only() -> None:
    fd = memfd("AB")
    source = CopiedSource(fd)
    first = source.pages(0, 1)
    assert picture_of(first.tobytes()) == "A"
    assert source.pages(1, 1) is not first
    assert picture_of(first.tobytes()) == "B"
    source.close()
    os.close(fd)


def test_mapped_pages_are_no_copy() -> None:
    fd = memfd("A")
    source = MappedSource(fd, length=PAGE)
    source.open()
    page = source.pages(0, 1)
    os.pwrite(fd, b"\1" * PAGE, 0)
    assert set(page.tobytes()) == {1}
    source.close()
    os.close(fd)


def test_a_file_that_became_shorter_is_noticed_when_it_is_mapped() -> None:
    fd = memfd("AB")
    source = MappedSource(fd, length=2 * PAGE)
    os.ftruncate(fd, PAGE)
    with pytest.raises(HostError, match="cannot map guest RAM: its file became shorter"):
        source.open()
    source.close()
    os.close(fd)


def test_a_file_system_that_knows_holes_more_finely_than_pages_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = memfd("AB-D")
    extents = [(0, 512), (1024, PAGE + 512), (2 * PAGE - 512, 2 * PAGE), (3 * PAGE + 1, 3 * PAGE + 2)]
    monkeypatch.setattr(mapped_source, "data_extents", lambda *_: iter(extents))
    source = MappedSource(fd, length=4 * PAGE)
    assert source.data_ranges(PageRange(0, 4)) == [PageRange(0, 2), PageRange(3, 1)]
    source.close()
    os.close(fd)


def test_a_file_that_became_shorter_is_noticed_when_it_is_copied() -> None:
    fd = memfd("AB")
    source = CopiedSource(fd)
    os.ftruncate(fd, PAGE)
    with pytest.raises(HostError, match="became shorter"):
        source.pages(0, 2)
    source.close()
    os.close(fd)


def test_asking_64_gib_of_never_touched_memory_is_quick_and_free() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 64 * GIB)
    os.pwrite(fd, b"x", 63 * GIB)
    source = MappedSource(fd, length=64 * GIB)
    assert source.data_ranges(PageRange(0, 64 * GIB // PAGE)) == [PageRange(63 * GIB // PAGE, 1)]
    assert allocated_pages(fd) == 1
    source.close()
    os.close(fd)


def opened(path: Path | str, **options: int) -> tuple[PageSource, int, int]:
    return open_ram_file(str(path), **options)


def test_a_part_of_a_file_is_a_block(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), "AB-CD")
    source, length, page_size = opened(path, offset=PAGE, length=3 * PAGE)
    source.open()
    assert (length, page_size) == (3 * PAGE, PAGE)
    assert picture_of(source.pages(0, 3).tobytes()) == "B0C"
    source.close()
    source, length, _ = opened(path, offset=3 * PAGE)
    assert length == 2 * PAGE
    source.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": 100}, "offset 100 .* is not a multiple of 4096"),
        ({"offset": 4 * PAGE}, "has 16384 bytes, asked for 0 at 16384"),
        ({"offset": PAGE, "length": 4 * PAGE}, "has 16384 bytes, asked for 16384 at 4096"),
        ({"length": 0}, "asked for 0 at 0"),
        ({"length": 5000}, "size 5000 is not a multiple of the page size 4096"),
    ],
)
def test_a_part_that_is_none_is_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(4 * PAGE))
    with pytest.raises(RequestError, match=message):
        opened(path, **options)


def test_what_is_not_a_file_is_refused_and_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/null"):
        with pytest.raises(RequestError, match="is not a regular file"):
            opened(path)
    with pytest.raises(NoFileError, match=r"cannot open guest RAM .*: no such file"):
        opened(tmp_path / "missing")


def test_opening_leaves_one_descriptor_and_refusing_none(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(PAGE))
    before = set(os.listdir("/proc/self/fd"))
    source, _, _ = opened(path)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    source.close()
    with pytest.raises(RequestError):
        opened(path, offset=1)
    assert set(os.listdir("/proc/self/fd")) == before


def test_reading_holes_is_what_the_sources_are_there_to_avoid() -> None:
    """The reason for data_ranges, should a kernel ever change it: reading a hole through a mapping allocates it."""
    fd = memfd("----")
    source = MappedSource(fd, length=4 * PAGE)
    source.open()
    source.pages(0, 4).sum()
    assert allocated_pages(fd) == 4
    source.close()
    os.close(fd)
