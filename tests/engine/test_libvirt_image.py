"""Files in libvirt's container: written, read, edited in front of the stream; and those that are refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.damage import flip, place
from support.libvirt_images import XML, libvirt_head, put_behind
from support.pictures import content
from support.streamwriter import DEVICES, MIB, Block, our_file, stream

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.reports.inspect import InspectReport
from parallel_fixedram.core.reports.libvirt import InspectLibvirtReport
from parallel_fixedram.core.schemas import from_json, to_json
from parallel_fixedram.image.add_trailer import add_trailer
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.restore import Destination, restore
from parallel_fixedram.image.verify import verify
from parallel_fixedram.verbs.diff import diff
from parallel_fixedram.verbs.inspect import inspect

M, BIOS = Block(name="m", picture="A0C" * 30), Block(name="bios", picture="B.")
HEAD = libvirt_head(XML.replace(b"<name>", b"<uuid>77bd52df-5b99-46cb-853e-89661664bd7c</uuid><name>"))
WAS_RUNNING = 24
"""Where the header says so."""
CHANGED = "does not match its digest"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "PLAIN"
    path.write_bytes(stream(M, BIOS, machine="pc").data)
    return path


@pytest.fixture
def ours(tmp_path: Path, plain: Path) -> Path:
    path = tmp_path / "OURS"
    put_behind(HEAD, plain, path, main="m")
    return path


def checked(image: Path) -> tuple[bool, list[tuple[str, str | None]]]:
    with Image(str(image)) as opened:
        report = verify(opened)
    return report.ok, [(each.what, each.idstr) for each in report.differences]


def test_an_image_of_ours_has_the_bytes_that_its_description_says(ours: Path) -> None:
    made = our_file(M, BIOS, devices=DEVICES, clone=[BIOS], head=HEAD, machine="pc", alignment=MIB)
    assert ours.read_bytes() == made.data
    assert checked(ours) == (True, [])


def test_an_image_holds_what_the_file_holds_that_it_was_made_of(plain: Path, ours: Path) -> None:
    assert diff(str(plain), str(ours)).equal
    assert diff(f"file:{ours},offset={len(HEAD)}", str(ours)).equal


def test_an_image_by_libvirt_gets_a_trailer_that_covers_its_header(tmp_path: Path) -> None:
    path = tmp_path / "THEIRS"
    path.write_bytes(stream(M, BIOS, head=HEAD).data)
    assert checked(path) == (True, [])
    with Image(str(path)) as image:
        add_trailer(image, ["m"], channels=1)
    assert checked(path) == (True, [])
    flip(path, WAS_RUNNING)
    assert not checked(path)[0]


@pytest.mark.parametrize(
    ("at", "part"),
    [(WAS_RUNNING, "header"), (91, "header"), (92, "domain XML"), (200, "domain XML"), (len(HEAD) - 1, "domain XML")],
)
def test_what_was_edited_in_front_of_the_stream_is_named_and_ram_is_still_restored(
    tmp_path: Path, ours: Path, at: int, part: str
) -> None:
    flip(ours, at)
    ok, ((what, idstr),) = checked(ours)
    assert (ok, idstr) == (False, None)
    assert what.startswith(f"libvirt's {part}")
    assert what.endswith(CHANGED)
    with Image(str(ours)) as image:
        restore(image, {"m": Destination(path=tmp_path / "m")}, check_digests=True)
    assert (tmp_path / "m").read_bytes() == content(M.picture)


def test_damage_behind_the_header_is_not_taken_for_an_edit(ours: Path) -> None:
    for where in (lambda block: block.page_offset(2), lambda block: block.header.bitmap_offset):
        offset = place(str(ours), lambda image, where=where: where(image.block("m")))
        flip(ours, offset)
        assert {idstr for _, idstr in checked(ours)[1]} == {"m"}
        flip(ours, offset)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (libvirt_head(magic=b"LibvirtQemudPart"), "not complete"),
        (libvirt_head(format=0), "in format raw, where pages have no fixed offsets"),
        (libvirt_head(format=5), "in format zstd"),
        (libvirt_head(magic=b"LibvirtQemudPart", format=0), "not complete"),
    ],
    ids=["not complete", "raw", "zstd", "raw and not complete"],
)
def test_images_without_pages_at_fixed_offsets_are_described_and_otherwise_refused_by_name(
    tmp_path: Path, plain: Path, head: bytes, why: str
) -> None:
    path = tmp_path / "IMAGE"
    path.write_bytes(head + b"QEVM\0\0\0\3 something else")
    report = inspect(str(path))
    assert isinstance(report, InspectLibvirtReport)
    assert (report.libvirt.domain, report.size) == ("vm", path.stat().st_size)
    assert [note for note in report.warnings if why in note]
    assert from_json(InspectLibvirtReport, to_json(report)) == report
    uses: list[Callable[[], object]] = [partial(open_image, str(path)), partial(diff, str(plain), str(path))]
    for use in uses:
        with pytest.raises(FormatError, match=why) as caught:
            use()
        assert caught.value.message.startswith(f"{str(path)!r} at 0x0: libvirt save image")


def test_an_image_is_described_with_its_domain(ours: Path) -> None:
    report = inspect(str(ours))
    assert isinstance(report, InspectReport)
    assert report.libvirt
    assert (report.offset, report.machine) == (len(HEAD), "pc")
    assert (report.libvirt.domain, report.libvirt.uuid) == ("vm", "77bd52df-5b99-46cb-853e-89661664bd7c")
    assert (report.libvirt.complete, report.libvirt.format, report.libvirt.running) == (True, "sparse", True)
    assert from_json(InspectReport, to_json(report)) == report


def test_other_files_are_described_without_a_domain(plain: Path) -> None:
    report = inspect(str(plain))
    assert isinstance(report, InspectReport)
    assert report.libvirt is None


def test_an_image_with_hostile_xml_is_not_described_and_its_pages_are_read(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "HOSTILE"
    put_behind(libvirt_head(b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>"), plain, path)
    with pytest.raises(FormatError, match=r"HOSTILE' the domain XML has a document type"):
        inspect(str(path))
    assert checked(path) == (True, [])
