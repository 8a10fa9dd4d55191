import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.channels import DeadlyChannel, FailingChannel
from support.damage import flip, place
from support.examples import at_most, letters, some_of
from support.observers import Heard
from support.pictures import PAGE, allocated_pages, content, draw, memfd, picture_of, read_all
from support.saving import save, several
from support.sources import ScriptedGuest, huge_file
from support.streamwriter import Block, stream

from parallel_fixedram.core.errors import ContentsDiffer, FormatError, HostError, RequestError
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.schemas import from_json, to_json
from parallel_fixedram.host.files import page_cache
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.page_cache import cached_bytes, drop_from_cache, takes_direct_io
from parallel_fixedram.host.memory.ram_target import RamTarget
from parallel_fixedram.image.cold import is_cold
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.restore import Destination, restore

RAM = "A0-b" + "C" * 300 + "-" * 60 + "D0E" * 30 + "-" * 40


@dataclass
class Folder:
    """A folder with saved files and destinations."""

    path: Path

    def __truediv__(self, name: str) -> str:
        return str(self.path / name)

    def save(self, **ram: str) -> str:
        """A file of this RAM."""
        file = self / "FILE"
        with ScriptedGuest(ram, running=False) as guest:
            save(guest, file, several(direct_io=DirectIO.OFF, overwrite=True))
        return file

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "work").mkdir()
    return Folder(tmp_path / "work")


@pytest.fixture(params=[False, True], ids=["cached", "cold"])
def cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Whether files count as cold, which is another way through a restore."""
    (tmp_path / "PROBE").write_bytes(bytes(PAGE))
    if request.param and not takes_direct_io(str(tmp_path / "PROBE")):
        pytest.skip("the temporary folder takes no direct I/O")
    monkeypatch.setattr(page_cache, "is_cold", lambda *_: request.param)
    return bool(request.param)


def of(fd: int) -> Destination:
    return Destination(path=f"/proc/{os.getpid()}/fd/{fd}")


@pytest.mark.parametrize("channels", some_of([3, 1], 2))
@pytest.mark.parametrize("check_digests", some_of([True, False], 2))
@pytest.mark.parametrize("before", some_of(["-", "0", "X", "X-", "X0--X"], 4))
def test_a_destination_is_what_the_file_says_whatever_it_held(
    folder: Folder, channels: int, check_digests: bool, before: str, cold: bool
) -> None:
    fd = memfd((before * len(RAM))[: len(RAM)])
    with Image(folder.save(ram=RAM)) as image:
        report = restore(image, {"ram": of(fd)}, channels=channels, check_digests=check_digests)
    assert read_all(fd) == content(RAM)
    assert report.direct_io == cold
    assert report.bytes == PAGE * sum(letter not in "0-" for letter in RAM)
    os.close(fd)


@given(data=st.data())
@at_most(10)
def test_any_file_can_be_restored_over_any_memory(folder: Folder, cold: bool, data: st.DataObject) -> None:
    length = data.draw(st.sampled_from((1, 2, 63, 64, 65, 130, 257)))
    ram, before = (data.draw(letters(alphabet, length)) for alphabet in ("AA0b---", "XX0z---"))
    fd = memfd(before)
    with Image(folder.save(ram=ram)) as image:
        restore(image, {"ram": of(fd)}, check_digests=True)
    assert picture_of(read_all(fd)) == ram.replace("-", "0")
    kept = sum(new in "Ab" or (old != "-" and new in "0-") for new, old in zip(ram, before, strict=True))
    assert sum(letter in "Ab" for letter in ram) <= allocated_pages(fd) <= kept
    os.close(fd)


@pytest.mark.usefixtures("cold")
def test_what_the_file_calls_zero_stays_or_becomes_a_hole(folder: Folder) -> None:
    fresh, full = memfd("-" * len(RAM)), memfd("X" * len(RAM))
    with Image(folder.save(ram=RAM)) as image:
        for fd in (fresh, full):
            restore(image, {"ram": of(fd)})
    data_pages = sum(letter not in "0-" for letter in RAM)
    assert allocated_pages(fresh) == data_pages
    # up to 16 zero pages are written together with their neighbours where there was memory already
    assert data_pages <= allocated_pages(full) <= len(RAM) - 40 - 60
    os.close(fresh)
    os.close(full)


def test_a_new_destination_is_made_private_and_holds_what_ram_held(folder: Folder) -> None:
    with Image(folder.save(ram=RAM, second="Z-")) as image:
        report = restore(image, {name: Destination(path=folder / name) for name in ("ram", "second")}, channels=2)
    assert (folder.path / "ram").read_bytes() == content(RAM)
    assert (folder.path / "second").read_bytes() == content("Z-")
    assert (folder.path / "ram").stat().st_mode & 0o7777 == 0o600
    assert from_json(RestoreReport, to_json(report)) == report
    assert [(block.idstr, block.data_pages) for block in report.blocks] == [("ram", 362), ("second", 1)]
    assert report.left_out == ()


def test_a_file_that_is_not_cached_is_read_past_the_page_cache_and_stays_so(folder: Folder) -> None:
    file = folder.save(ram="A" * 4096, second="-B")
    with open(file, "rb") as opened:
        drop_from_cache(opened.fileno())
        if not takes_direct_io(file) or cached_bytes(opened.fileno()) != 0:
            pytest.skip("this file system cannot be made cold")
        before = [report_of(folder, file), cached_bytes(opened.fileno())]
        opened.read()
        after = [report_of(folder, file), cached_bytes(opened.fileno())]
    assert (before[0], after[0]) == (True, False)
    assert before[1] is not None
    assert before[1] < 4096 * PAGE  # heads and bitmaps, and what the kernel read ahead with them
    assert after[1] is not None
    assert after[1] >= 4096 * PAGE


def report_of(folder: Folder, file: str) -> bool:
    """Whether a restore reads bypassing the page cache."""
    with Image(file) as image:
        report = restore(image, {"ram": Destination(path=folder / "ram")}, channels=2)
    assert (folder.path / "ram").read_bytes() == content("A" * 4096)
    return report.direct_io


@pytest.mark.parametrize("cold", [True], indirect=True)
def test_a_cold_file_where_direct_reading_is_refused_is_read_through_the_page_cache(
    folder: Folder, cold: bool, refuse_direct_io: Callable[[], None]
) -> None:
    refuse_direct_io()
    with Image(folder.save(ram=RAM)) as image:
        assert not restore(image, {"ram": Destination(path=folder / "ram")}).direct_io
    assert (folder.path / "ram").read_bytes() == content(RAM)


def test_which_pages_are_asked_whether_they_are_cached(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Present ones, spread over all blocks, and no more than it takes."""
    asked: list[int] = []

    def note(_fd: int, offsets: list[int]) -> bool:
        asked.extend(offsets)
        return False

    monkeypatch.setattr(page_cache, "is_cold", note)
    with Image(folder.save(ram="-" * 70 + "A" + "-" * 100 + "B" * 9000, second="-" * 200, third="--Z")) as image:
        assert not is_cold(image, image.blocks)
        ram, third = image.block("ram"), image.block("third")
        assert {ram.page_offset(70), third.page_offset(2)} < set(asked)
        pages = [ram.page_at(offset) for offset in asked[:-1]]
        assert all(image.bitmap("ram").test(page) for page in pages)
        assert max(pages) > 9000
    assert len(asked) == len(set(asked)) == 65


def test_blocks_that_are_not_named_are_left_out_and_the_report_says_so(folder: Folder) -> None:
    with Image(folder.save(ram="AB", second="Z-")) as image:
        report = restore(image, {"second": Destination(path=folder / "second")})
    assert report.left_out == ("ram",)
    assert folder.names() == ["FILE", "second"]


def test_a_block_is_restored_into_the_rest_of_a_file(folder: Folder) -> None:
    path = folder.path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), "XYXXX")
    with Image(folder.save(ram="A-B")) as image:
        restore(image, {"ram": Destination(path=str(path), offset=2 * PAGE)})
    assert picture_of(path.read_bytes()) == "XYA0B"


def test_huge_pages_are_filled_and_only_those_that_hold_something(folder: Folder) -> None:
    with huge_file(3) as file:
        pages = file.size // PAGE
        ram = ("A0" + "-" * 600 + "z").ljust(pages, "-")
        file.draw("X" * 10 + "0" * 100)
        with Image(folder.save(ram=ram)) as image:
            restore(image, {"ram": Destination(path=file.path)}, channels=2, check_digests=True)
        assert read_all(file.fd) == content(ram)
        assert os.fstat(file.fd).st_blocks * 512 == 2 * file.page_size


def test_progress_goes_up_to_the_total(folder: Folder) -> None:
    heard = Heard()
    with Image(folder.save(ram="A" * 3000)) as image:
        restore(image, {"ram": Destination(path=folder / "ram")}, observer=heard)
    assert heard.done == {"restore": (3000 * PAGE, 3000 * PAGE)}


# --- what is refused, and that nothing is touched then


@pytest.mark.parametrize("pages", [2, 4])
def test_a_destination_of_another_size_is_refused_and_none_is_touched(folder: Folder, pages: int) -> None:
    path = folder.path / "wrong"
    path.write_bytes(b"x" * pages * PAGE)
    fd = memfd("XX")
    with Image(folder.save(ram="AB", second="ABC")) as image:
        with pytest.raises(RequestError, match="block 'second' has 12288 bytes, its destination"):
            restore(image, {"ram": of(fd), "second": Destination(path=str(path))})
        with pytest.raises(RequestError, match="block 'second' has 12288 bytes, its destination"):
            restore(image, {"ram": Destination(path=folder / "new"), "second": Destination(path=str(path))})
    assert path.read_bytes() == b"x" * pages * PAGE
    assert picture_of(read_all(fd)) == "XX"
    assert folder.names() == ["FILE", "wrong"]
    os.close(fd)


def test_requests_that_make_no_sense_are_refused(folder: Folder) -> None:
    with Image(folder.save(ram="AB")) as image:
        with pytest.raises(RequestError, match="no block was given a destination"):
            restore(image, {})
        with pytest.raises(RequestError, match="has no block 'other'; it has 'ram'"):
            restore(image, {"ram": Destination(path=folder / "ram"), "other": Destination(path=folder / "other")})
    assert folder.names() == ["FILE"]


@pytest.mark.parametrize("exists", [False, True])
def test_two_blocks_cannot_be_restored_into_the_same_memory(folder: Folder, exists: bool) -> None:
    path = folder.path / "same"
    if exists:
        path.write_bytes(content("XX"))
        os.link(path, folder / "link")
    other = folder / ("link" if exists else f"../{folder.path.name}/same")
    with Image(folder.save(ram="AB", second="CD")) as image, pytest.raises(RequestError, match="'second'"):
        restore(image, {"ram": Destination(path=str(path)), "second": Destination(path=other)})
    assert folder.names() == (["FILE", "link", "same"] if exists else ["FILE"])
    if exists:
        assert path.read_bytes() == content("XX")


@pytest.mark.usefixtures("cold")
def test_a_changed_page_is_found_while_it_is_restored_and_named(folder: Folder) -> None:
    file = folder.save(ram=RAM)
    offset = place(file, lambda image: image.block("ram").page_offset(200))
    flip(file, offset + 4095)
    with Image(file) as image:
        said = rf"block 'ram' page 200 at {offset:#x}: does not match its digest"
        with pytest.raises(ContentsDiffer, match=said) as caught:
            restore(image, {"ram": Destination(path=folder / "ram")}, channels=2, check_digests=True)
        assert caught.value.hint == "1 bad page; nothing was restored"
        assert folder.names() == ["FILE"]
        restore(image, {"ram": Destination(path=folder / "ram")})  # nobody asked
        with pytest.raises(ContentsDiffer, match=said) as caught:  # over what is there
            restore(image, {"ram": Destination(path=folder / "ram")}, check_digests=True)
        assert caught.value.hint == f"1 bad page; do not use '{folder / 'ram'}'"
    assert folder.names() == ["FILE", "ram"]


def test_a_page_whose_bit_was_lost_is_found_before_anything_is_touched(folder: Folder) -> None:
    """A cleared bit far from every other page: no window of work holds it."""
    file = folder.save(ram="A" + "-" * 600 + "B" + "-" * 600)
    flip_bit = place(file, lambda image: image.block("ram").header.bitmap_offset + 601 // 8)
    with open(file, "r+b") as opened:
        opened.seek(flip_bit)
        opened.write(b"\0")
    fd = memfd("X" + "-" * 1201)
    with Image(file) as image, pytest.raises(ContentsDiffer, match="the bytes before its pages"):
        restore(image, {"ram": of(fd)}, check_digests=True)
    assert picture_of(read_all(fd))[0] == "X"
    os.close(fd)


def test_digests_cannot_be_checked_where_there_are_none(folder: Folder) -> None:
    (folder.path / "PLAIN").write_bytes(stream(Block(name="ram", picture="A0-B")).data)
    with Image(folder / "PLAIN") as image:
        with pytest.raises(RequestError, match="has no digests"):
            restore(image, {"ram": Destination(path=folder / "ram")}, check_digests=True)
        assert folder.names() == ["PLAIN"]
        restore(image, {"ram": Destination(path=folder / "ram")})
    assert (folder.path / "ram").read_bytes() == content("A00B")  # not the stale bytes


def test_a_file_whose_save_was_interrupted_is_refused_and_nothing_is_touched(folder: Folder) -> None:
    """By its empty bitmap all of RAM would be zero."""
    fd = memfd("XXXX")
    (folder.path / "PLAIN").write_bytes(stream(Block(name="ram", picture="----"), end=False).data)
    with Image(folder / "PLAIN") as image, pytest.raises(FormatError, match="has pages but an empty bitmap"):
        restore(image, {"ram": of(fd)})
    assert picture_of(read_all(fd)) == "XXXX"
    os.close(fd)


def test_a_bitmap_with_bits_after_the_last_page_is_refused_and_nothing_is_touched(folder: Folder) -> None:
    qemu = stream(Block(name="ram", picture="AB"), Block(name="second", picture="CD"))
    (folder.path / "QEMU").write_bytes(qemu.patch("bitmap:second", "B", 1, at=1).data)
    fd = memfd("XX")
    with Image(folder / "QEMU") as image, pytest.raises(FormatError, match="bits after the last page"):
        restore(image, {"ram": of(fd), "second": Destination(path=folder / "second")})
    assert picture_of(read_all(fd)) == "XX"
    assert folder.names() == ["QEMU"]
    os.close(fd)


# --- failures on the way


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[FileChannel], object]], None]]:
    """Make destinations be written through the channel that a function makes of the file."""
    made: list[FailingChannel | DeadlyChannel] = []

    def install(wrap: Callable[[FileChannel], FailingChannel | DeadlyChannel]) -> None:
        def channel(target: RamTarget) -> FailingChannel | DeadlyChannel:
            made.append(wrap(FileChannel(target.fd, target.path)))
            return made[-1]

        monkeypatch.setattr(RamTarget, "channel", channel)

    yield install
    for each in made:
        each.close()


@pytest.mark.parametrize("successes", range(4))
def test_a_failing_write_leaves_no_file_that_was_made(
    folder: Folder, through: Callable[[object], None], successes: int
) -> None:
    through(lambda inner: FailingChannel(inner, errno=5, successes=successes))
    with Image(folder.save(ram="A-" * 300)) as image, pytest.raises(HostError, match="input/output error"):
        restore(image, {"ram": Destination(path=folder / "ram")}, channels=2)
    assert folder.names() == ["FILE"]


def test_a_worker_that_dies_in_the_middle_is_made_up_for(folder: Folder, through: Callable[[object], None]) -> None:
    through(lambda inner: DeadlyChannel(inner, 100 * PAGE, times=2))
    with Image(folder.save(ram=RAM)) as image:
        restore(image, {"ram": Destination(path=folder / "ram")}, channels=3, check_digests=True)
    assert (folder.path / "ram").read_bytes() == content(RAM)


def test_when_all_workers_die_nothing_that_was_made_is_left(folder: Folder, through: Callable[[object], None]) -> None:
    through(lambda inner: DeadlyChannel(inner, 100 * PAGE, times=9))
    with Image(folder.save(ram=RAM)) as image, pytest.raises(HostError, match="no worker is left"):
        restore(image, {"ram": Destination(path=folder / "ram")}, channels=2)
    assert folder.names() == ["FILE"]


@pytest.mark.usefixtures("cold")
def test_a_file_that_became_shorter_is_an_error_and_not_a_crash(folder: Folder) -> None:
    with Image(file := folder.save(ram=RAM)) as image:
        os.truncate(file, 1 << 20)
        with pytest.raises(FormatError, match=re.escape(f"{file!r} ends")):
            restore(image, {"ram": Destination(path=folder / "ram")})
    assert folder.names() == ["FILE"]
