import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.damage import flip, place
from support.observers import Heard
from support.pictures import PAGE, allocated_pages
from support.saving import save, several
from support.sources import ScriptedGuest
from support.streamwriter import Block, stream

from parallel_fixedram.core.errors import FormatError, RequestError
from parallel_fixedram.core.reports.difference import Difference
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.schemas import from_json, to_json
from parallel_fixedram.format.trailer import FOOTER_BYTES
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import MAX_DIFFERENCES, verify

RAM = "A0-b" + "C" * 200 + "-" * 60 + "D"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = str(tmp_path / "FILE")
    with ScriptedGuest({"ram": RAM, "second": "Z-Y"}, running=False) as guest:
        save(guest, path, several(direct_io=DirectIO.OFF))
    return path


def checked(file: str, *, quick: bool = False, channels: int = 1) -> VerifyReport:
    with Image(file) as image:
        return verify(image, quick=quick, channels=channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_good_file_is_ok(file: str, channels: int) -> None:
    report = checked(file, channels=channels)
    assert report.ok
    assert (report.bad_pages, report.stale_pages, report.differences) == (0, 0, ())
    assert report.digests
    assert not report.quick
    assert [(block.idstr, block.data_pages) for block in report.blocks] == [("ram", 203), ("second", 2)]


def test_a_report_survives_its_way_through_json(file: str) -> None:
    flip(file, place(file, lambda image: image.block("ram").page_offset(0)))
    report = checked(file)
    assert from_json(VerifyReport, to_json(report)) == report
    assert report.differences


def test_progress_goes_up_to_the_total(file: str) -> None:
    heard = Heard()
    with ScriptedGuest({"ram": RAM}) as guest, Image(file) as image:
        verify(image, ram={"ram": guest.guest_blocks()[0]}, observer=heard)
    assert {"digests", "RAM"} <= set(dict(heard.phases))
    assert all(done == total > 0 for done, total in heard.done.values())


@pytest.mark.parametrize(("idstr", "page"), [("ram", 0), ("ram", 203), ("ram", 264), ("second", 2)])
@pytest.mark.parametrize("byte", [0, 4095])
def test_a_changed_byte_of_a_page_is_pinned_to_its_page(file: str, idstr: str, page: int, byte: int) -> None:
    offset = place(file, lambda image: image.block(idstr).page_offset(page))
    flip(file, offset + byte)
    report = checked(file)
    assert not report.ok
    assert report.bad_pages == 1
    assert report.differences == (
        Difference(what="does not match its digest", idstr=idstr, first_page=page, pages=1, offset=offset),
    )
    assert str(report.differences[0]) == f"block {idstr!r} page {page} at {offset:#x}: does not match its digest"


def test_neighbouring_bad_pages_are_one_difference(file: str) -> None:
    first = place(file, lambda image: image.block("ram").page_offset(60))
    for index in range(10):
        flip(file, first + index * PAGE)
    (difference,) = checked(file, channels=2).differences
    assert (difference.first_page, difference.pages, difference.offset) == (60, 10, first)


def test_two_pages_that_were_exchanged_are_both_found(file: str) -> None:
    a, b = (place(file, lambda image, p=page: image.block("ram").page_offset(p)) for page in (0, 264))
    with open(file, "r+b") as opened:
        first, second = os.pread(opened.fileno(), PAGE, a), os.pread(opened.fileno(), PAGE, b)
        os.pwrite(opened.fileno(), second, a)
        os.pwrite(opened.fileno(), first, b)
    assert [difference.first_page for difference in checked(file).differences] == [0, 264]


@pytest.mark.parametrize(("idstr", "page"), [("ram", 1), ("ram", 2), ("ram", 230), ("second", 1)])
def test_a_byte_in_the_place_of_a_zero_page_is_found(file: str, idstr: str, page: int) -> None:
    """Invariant 5, as a reader sees it."""
    offset = place(file, lambda image: image.block(idstr).page_offset(page))
    flip(file, offset + 77)
    report = checked(file)
    assert (report.ok, report.stale_pages) == (False, 1)
    (difference,) = report.differences
    assert (difference.idstr, difference.first_page, difference.offset) == (idstr, page, offset)
    assert "is zero by the bitmap" in difference.what


@pytest.mark.parametrize("idstr", ["ram", "second"])
def test_a_changed_bitmap_is_found(file: str, idstr: str) -> None:
    """A bit that appears stands for a page without a digest, one that is lost for a digest without a page."""
    start = place(file, lambda image: image.block(idstr).header.bitmap_offset)
    for bit in (0, 1):
        with open(file, "r+b") as opened:
            byte = os.pread(opened.fileno(), 1, start)[0]
            os.pwrite(opened.fileno(), bytes([byte ^ (1 << bit)]), start)
            report = checked(file)
            os.pwrite(opened.fileno(), bytes([byte]), start)
        found = [(difference.what, difference.idstr, difference.first_page) for difference in report.differences]
        assert ("the bytes before its pages (head, record, bitmap) do not match their digest", idstr, None) in found
        assert not report.ok
    assert checked(file).ok


@pytest.mark.parametrize(
    ("where", "idstr"),
    [
        (lambda image: image.block("ram").record_offset - 1, None),
        (lambda image: image.block("ram").record_offset + 1, None),
        (lambda image: image.block("ram").bitmap_end, "ram"),
        (lambda image: image.block("ram").header.pages_offset - 1, "ram"),
        (lambda image: image.block("second").bitmap_end + 5000, "second"),
        (lambda image: image.file.stream_end - 3, None),
        (lambda image: image.file.trailer.offset + 2, None),
        (lambda image: image.file.trailer.tables[0] + 8 * 200, "ram"),
        (lambda image: image.file.trailer.tables[0] + 8, None),
        (lambda image: image.file.size - FOOTER_BYTES - 1, None),
        (lambda image: image.file.size - 1, None),
    ],
    ids=[
        "head",
        "name",
        "gap after a bitmap",
        "gap before the pages",
        "gap of the second block",
        "VM description",
        "part of the trailer",
        "digest of a page",
        "digest of a zero page",
        "padding of the trailer",
        "digest of the trailer",
    ],
)
def test_every_other_byte_is_covered_too(file: str, where: Callable[[Image], int], idstr: str | None) -> None:
    flip(file, place(file, where))
    try:
        report = checked(file)
    except FormatError:
        return
    assert not report.ok
    assert all(difference.offset is not None for difference in report.differences)
    assert idstr is None or idstr in [difference.idstr for difference in report.differences]


@pytest.mark.slow
def test_no_changed_byte_of_head_bitmap_tail_or_trailer_goes_unnoticed(file: str) -> None:
    with Image(file) as image:
        block, trailer = image.block("second"), image.file.trailer
        assert trailer is not None
        first, end = image.block("ram").bitmap_end, image.file.size
        places = [*range(0, first, 3), *range(block.record_offset, block.bitmap_end, 3)]
        places += [*range(block.pages_end, trailer.offset + 64, 7), *range(trailer.offset + 64, end - 64, 191)]
        places += range(end - 64, end)
    unnoticed = []
    for offset in places:
        flip(file, offset)
        try:
            if checked(file).ok:
                unnoticed.append(offset)
        except FormatError:
            pass
        flip(file, offset)
    assert unnoticed == []
    assert checked(file).ok


@pytest.mark.parametrize("cut", [1, 8, FOOTER_BYTES, PAGE, 3 * PAGE])
def test_a_file_that_was_cut_off_is_refused(file: str, cut: int) -> None:
    os.truncate(file, os.stat(file).st_size - cut)
    with pytest.raises(FormatError):
        checked(file)


def test_more_bad_pages_than_can_be_named_are_counted(tmp_path: Path) -> None:
    path, pages = str(tmp_path / "FILE"), 4 * MAX_DIFFERENCES
    with ScriptedGuest({"ram": "A" * pages}, running=False) as guest:
        save(guest, path, several(direct_io=DirectIO.OFF))
    start = place(path, lambda image: image.block("ram").header.pages_offset)
    with open(path, "r+b") as opened:
        for page in range(0, pages, 2):
            os.pwrite(opened.fileno(), b"x", start + page * PAGE)
    report = checked(path)
    assert report.bad_pages == pages // 2
    assert 0 < len(report.differences) <= MAX_DIFFERENCES


def test_a_quick_look_reads_no_page(file: str) -> None:
    flip(file, place(file, lambda image: image.block("ram").page_offset(0)))
    report = checked(file, quick=True)
    assert report.ok
    assert (report.quick, report.digests, report.stale_pages) == (True, False, None)


# --- files without a trailer


def test_stale_bytes_of_a_file_without_a_trailer_are_only_counted(tmp_path: Path) -> None:
    path = tmp_path / "QEMU"
    path.write_bytes(stream(Block(name="ram", picture="A-0--B"), Block(name="other", picture="-")).data)
    report = checked(str(path))
    assert report.ok
    assert (report.stale_pages, report.digests, report.differences) == (4, False, ())


def test_a_file_whose_save_was_interrupted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "QEMU"
    path.write_bytes(stream(Block(name="ram", picture="----"), end=False).data)
    for quick in (True, False):
        with pytest.raises(FormatError, match="has pages but an empty bitmap"):
            checked(str(path), quick=quick)


# --- against RAM


@pytest.mark.parametrize("quick", [False, True])
def test_ram_that_differs_is_pinned_to_its_pages_and_allocates_nothing(file: str, quick: bool) -> None:
    ram = "A0-b" + "C" * 196 + "0-XX" + "-" * 59 + "E-"
    assert len(ram) == len(RAM)
    with ScriptedGuest({"ram": ram, "second": "Z-Y"}) as guest, Image(file) as image:
        before = allocated_pages(guest.fds["ram"])
        blocks = {each.block.idstr: each for each in guest.guest_blocks()}
        report = verify(image, ram=blocks, quick=quick, channels=2)
        assert allocated_pages(guest.fds["ram"]) == before
    assert report.ram == ("ram", "second")
    assert not report.ok
    expected = [
        index for index, (a, b) in enumerate(zip(RAM, ram, strict=True)) if a.replace("0", "-") != b.replace("0", "-")
    ]
    found = [(d.first_page, d.pages) for d in report.differences]
    assert [first + i for first, pages in found if first is not None for i in range(pages)] == expected
    assert {(difference.what, difference.idstr) for difference in report.differences} == {("differs from RAM", "ram")}
    assert report.bad_pages == len(expected)


def test_ram_of_another_length_or_name_is_refused(file: str) -> None:
    with ScriptedGuest({"second": "Z-Y-", "other": "A"}) as guest, Image(file) as image:
        second, other = guest.guest_blocks()
        with pytest.raises(RequestError, match="block 'second' has 12288 bytes in the file, 16384 in RAM"):
            verify(image, ram={"second": second})
        with pytest.raises(RequestError, match="has no block 'other'"):
            verify(image, ram={"other": other})
