from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import at_most, letters
from support.saving import save, several
from support.sources import ScriptedGuest
from support.streamwriter import Block, stream

from parallel_fixedram.core.reports.diff import DiffReport, NotCompared
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.schemas import from_json, to_json
from parallel_fixedram.engine.workers import messages
from parallel_fixedram.engine.workers.messages import BadPages
from parallel_fixedram.image.compare import diff, join_findings
from parallel_fixedram.image.image import Image


class Files:
    """Saves RAM of given pictures and compares it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, ram: dict[str, str]) -> str:
        path = str(self._folder / name)
        with ScriptedGuest(ram, running=False) as guest:
            save(guest, path, several(direct_io=DirectIO.OFF, overwrite=True))
        return path

    def diff(self, a: dict[str, str], b: dict[str, str], channels: int = 1) -> DiffReport:
        with Image(self.save("A", a)) as left, Image(self.save("B", b)) as right:
            return diff(left, right, channels=channels)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def odd(idstr: str, *pages: int | None) -> NotCompared:
    length_a, length_b = (None if count is None else count * 4096 for count in pages)
    return NotCompared(idstr=idstr, length_a=length_a, length_b=length_b)


def ranges(report: DiffReport) -> list[tuple[str | None, int | None, int]]:
    return [(difference.idstr, difference.first_page, difference.pages) for difference in report.differences]


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_files_are_equal_however_their_zeros_came_about(files: Files, channels: int) -> None:
    report = files.diff({"ram": "A0-b" * 100, "second": "-"}, {"ram": "A-0b" * 100, "second": "0"}, channels)
    assert report.equal
    assert (report.differing_pages, report.differences, report.only_in_a, report.only_in_b) == (0, (), (), ())


def test_differing_pages_come_as_joined_ranges_in_order(files: Files) -> None:
    a = {"ram": "A" * 300 + "0-B", "second": "XYZ"}
    b = {"ram": "A" * 250 + "Q" * 20 + "A" * 30 + "C-0", "second": "-YX"}
    report = files.diff(a, b, channels=2)
    assert ranges(report) == [("ram", 250, 20), ("ram", 300, 1), ("ram", 302, 1), ("second", 0, 1), ("second", 2, 1)]
    assert (report.equal, report.differing_pages, report.truncated) == (False, 24, False)
    assert from_json(DiffReport, to_json(report)) == report


def test_blocks_that_only_one_file_has_or_has_with_another_length_are_named(files: Files) -> None:
    report = files.diff({"ram": "AB", "rom": "R", "long": "XX"}, {"long": "X", "ram": "AB", "vga": "V"})
    assert (report.only_in_a, report.only_in_b) == (("rom", "long"), ("long", "vga"))
    assert set(report.not_compared) == {odd("rom", 1, None), odd("long", 2, 1), odd("vga", None, 1)}
    assert (report.equal, report.differing_pages) == (False, 0)
    assert from_json(DiffReport, to_json(report)) == report


def test_files_without_a_block_in_common_differ(files: Files) -> None:
    report = files.diff({"ram": "A"}, {"ram": "AB", "other": "A"})
    assert report.not_compared == (odd("ram", 1, 2), odd("other", None, 1))
    assert (report.equal, report.differing_pages, report.differences) == (False, 0, ())


def test_blocks_are_matched_by_name_not_by_place(files: Files) -> None:
    assert files.diff({"one": "AB", "two": "CD"}, {"two": "CD", "one": "AB"}).equal


@pytest.mark.slow
def test_every_range_is_named(files: Files) -> None:
    report = files.diff({"ram": "AB" * 5000}, {"ram": "AX" * 5000})
    assert [each.first_page for each in report.differences] == list(range(1, 10000, 2))
    assert not report.truncated


def test_more_ranges_than_can_be_named_are_counted_and_the_report_says_so(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_FINDINGS", 64)
    report = files.diff({"ram": "AB" * 2000}, {"ram": "AX" * 2000})
    assert report.differing_pages == 2000
    assert report.truncated
    assert 0 < len(report.differences) < 2000


def test_stale_bytes_behind_a_cleared_bit_are_no_difference(files: Files, tmp_path: Path) -> None:
    (tmp_path / "QEMU").write_bytes(stream(Block(name="ram", picture="A--B.")).data)
    with Image(files.save("A", {"ram": "A00B0"})) as ours, Image(str(tmp_path / "QEMU")) as theirs:
        assert diff(ours, theirs).equal


@given(st.data())
@at_most(10)
def test_exactly_the_pages_that_differ_are_found(files: Files, data: st.DataObject) -> None:
    length = data.draw(st.sampled_from((1, 63, 65, 300)))
    a, b = (data.draw(letters("AAA0-b", length)) for _ in range(2))
    report = files.diff({"ram": a}, {"ram": b})
    expected = [i for i in range(length) if a[i].replace("-", "0") != b[i].replace("-", "0")]
    assert report.differing_pages == len(expected)
    if not report.truncated:
        assert [first + i for _, first, pages in ranges(report) if first is not None for i in range(pages)] == expected


def test_findings_of_neighbouring_shards_become_one() -> None:
    found = [BadPages(1, 0, 5), BadPages(0, 64, 10), BadPages(0, 0, 64), BadPages(0, 80, 1), BadPages(0, 74, 1)]
    assert join_findings(found) == [BadPages(0, 0, 75), BadPages(0, 80, 1), BadPages(1, 0, 5)]
