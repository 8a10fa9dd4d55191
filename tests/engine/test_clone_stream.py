"""Small blocks, device sections and the clone stream, from a save to those who read its file."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.channels import MemoryChannel
from support.damage import flip
from support.examples import some_of
from support.pictures import PAGE, content, read_all
from support.saving import altered, save, several
from support.sources import ScriptedGuest
from support.streamwriter import DEVICES, Block, Section, Stream, device_bytes, our_file, stream

from parallel_fixedram.core.errors import FormatError, RequestError
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.units import MIB
from parallel_fixedram.format.migration_file import parse
from parallel_fixedram.image.clone_stream import CloneStream, clone_stream_of
from parallel_fixedram.image.compare import diff
from parallel_fixedram.image.describe import describe
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.restore import Destination, restore
from parallel_fixedram.image.verify import verify

BUFFERED = several(direct_io=DirectIO.OFF, overwrite=True)
STATE = device_bytes(DEVICES)
FIRMWARE = 8 * MIB // PAGE
"""Blocks of this many pages and more are saved like main memory."""
RAM = {"ram": "A0-B" * 40, "bios": "F-0-G" + "-" * 61, "vram": "-" * FIRMWARE + "0V", "rom": "R"}
SMALL = ("bios", "vram", "rom")


def saved_as(picture: str, *, firmware: bool) -> str:
    """What a save makes of a guest's picture, as the independent writer draws it."""
    return picture.replace("0", "-").replace("-", "." if firmware else "0")


def expected_file(ram: dict[str, str] = RAM, small: tuple[str, ...] = SMALL) -> Stream:
    """The file that a save of this RAM should be."""
    blocks = [
        Block(name=name, picture=saved_as(picture, firmware=name in small and len(picture) <= FIRMWARE))
        for name, picture in ram.items()
    ]
    clone = [block for block in blocks if block.name in small]
    return our_file(*blocks, devices=DEVICES, clone=clone, machine="scripted")


@pytest.fixture
def file(target: str) -> str:
    with ScriptedGuest(RAM, device_state=STATE, small=SMALL) as guest:
        save(guest, target, BUFFERED)
    return target


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("direct_io", [DirectIO.OFF, DirectIO.AUTO])
@pytest.mark.usefixtures("every_round_counts")
def test_a_saved_guest_has_the_bytes_that_its_description_says(target: str, running: bool, direct_io: DirectIO) -> None:
    with ScriptedGuest(RAM, device_state=STATE, small=SMALL, running=running) as guest:
        save(guest, target, altered(BUFFERED, direct_io=direct_io, channels=2))
    assert Path(target).read_bytes() == expected_file().data


@pytest.mark.parametrize(
    ("state", "small", "blocks"),
    [
        (STATE, SMALL, set(SMALL)),
        (STATE, ("rom",), {"rom"}),
        (STATE, tuple(RAM), set(RAM)),
        (STATE, (), set()),
        (b"", SMALL, set()),
        (b"", (), set()),
    ],
)
def test_there_is_a_clone_stream_where_there_are_devices_and_small_blocks(
    target: str, state: bytes, small: tuple[str, ...], blocks: set[str]
) -> None:
    with ScriptedGuest(RAM, device_state=state, small=small) as guest:
        save(guest, target, BUFFERED)
    with Image(target) as image:
        assert image.clone_blocks() == blocks
        assert bool(describe(image).clone_offset) == bool(blocks)
        assert verify(image).ok


@pytest.mark.parametrize("pages", some_of([1, 63, 64, 65, FIRMWARE - 1, FIRMWARE, FIRMWARE + 1], 3))
@pytest.mark.parametrize("running", [True, False])
def test_all_bits_of_small_firmware_are_set_and_its_zero_pages_have_digests(
    target: str, pages: int, running: bool
) -> None:
    """A QEMU that loads the file has contents of its own there."""
    firmware, all_pages = pages <= FIRMWARE, (pages, 2 * pages)
    picture = "-" * (pages - 1) + "0"
    with ScriptedGuest({"bios": picture, "ram": picture * 2}, small=["bios"], running=running) as guest:
        report = save(guest, target, altered(BUFFERED, channels=2))
        assert [block.data_pages for block in report.blocks] == [pages if firmware else 0, 0]
    with Image(target) as image:
        assert verify(image, channels=2).ok
        assert tuple(saved.block.pages for saved in image.blocks) == all_pages
        assert image.bitmap("bios").count() == (pages if firmware else 0)
        table = image.file.trailer.tables[0]
        assert (image.channel.bytes_at(table, 8 * pages) != bytes(8 * pages)) == firmware
        assert image.channel.bytes_at(image.block("bios").page_offset(0), pages * PAGE) == bytes(pages * PAGE)


def test_live_rounds_keep_all_pages_of_firmware(target: str) -> None:
    with ScriptedGuest({"bios": "FFF-", "ram": "A" * 70}, ["....", "0..X", ".0.."], small=["bios"]) as guest:
        save(guest, target, altered(BUFFERED, max_rounds=3), dirty=guest)
        ram = read_all(guest.fds["bios"])
    with Image(target) as image:
        assert image.bitmap("bios").count() == 4
        assert verify(image).ok
        assert image.read_pages("bios", 0, 4) == ram
        assert ram[3 * PAGE :] == content("X")


def test_a_clone_stream_holds_what_the_file_holds_of_its_blocks(file: str) -> None:
    with Image(file) as image:
        trailer = image.file.trailer
        assert trailer is not None
        data = image.channel.bytes_at(0, trailer.clone_end).replace(b"parallel-fixedram", b"somebody-else-did")
        alone = Stream(data.replace(b"RAM\0", b"\0\0\1\1"))
        clone = parse(alone.read, len(alone.data), trailer.clone_offset)
        assert clone.configuration == image.file.configuration
        assert [(each.name, each.body_length) for each in clone.devices] == [
            (each.name, len(each.body)) for each in DEVICES
        ]
        for place in clone.blocks:
            saved = image.block(place.block.idstr)
            assert place.header.pages_offset % PAGE == 0
            length = saved.block.used_length
            assert alone.read(place.header.pages_offset, length) == image.channel.bytes_at(
                saved.header.pages_offset, length
            )
            assert alone.read(place.header.bitmap_offset, place.bitmap_end - place.header.bitmap_offset) == (
                image.bitmap(place.block.idstr).to_bytes()
            )


def test_every_byte_of_the_clone_stream_is_covered_by_a_digest(file: str) -> None:
    with Image(file) as image:
        trailer = image.file.trailer
        assert trailer is not None
    size = trailer.clone_end - trailer.clone_offset
    for place in {0, 1, 77, size // 2, *range(size - 300, size, 37), size - 1}:
        flip(file, trailer.clone_offset + place)
        with Image(file) as image:
            report = verify(image)
        assert [each.what for each in report.differences] == [
            "the trailer does not match its digest",
            "the clone stream's bytes do not match their digest",
        ]
        flip(file, trailer.clone_offset + place)
    with Image(file) as image:
        assert verify(image).ok


def test_a_clone_stream_that_is_none_is_an_error_of_that_file(file: str) -> None:
    with Image(file) as image:
        flip(file, image.file.trailer.clone_offset)
        with pytest.raises(FormatError, match=r"FILE' at .*: not a migration stream"):
            image.clone_blocks()


def test_files_with_a_clone_stream_are_verified_compared_and_restored_like_others(file: str, tmp_path: Path) -> None:
    with ScriptedGuest(RAM, running=False) as guest:
        save(guest, file + "2", BUFFERED)
        with Image(file) as image, Image(file + "2") as plain:
            assert diff(image, plain).equal
            live = {each.block.idstr: each for each in guest.guest_blocks()}
            report = verify(image, ram=live, channels=2)
            assert (report.ok, report.stale_pages, set(report.ram)) == (True, 0, set(RAM))
            assert verify(image, quick=True).ok
            restore(image, {name: Destination(path=str(tmp_path / name)) for name in RAM}, check_digests=True)
    assert {name: (tmp_path / name).read_bytes() for name in RAM} == {name: content(RAM[name]) for name in RAM}


def test_inspect_lists_devices_and_tells_where_the_clone_stream_is(file: str) -> None:
    made = expected_file()
    with Image(file) as image:
        said = describe(image)
    assert said.clone_offset == made.marks["clone"]
    assert [each.name for each in said.devices] == ["timer", "cpu"]
    assert [each.data_pages for each in said.blocks] == [80, 66, 1, 1]


@pytest.mark.parametrize("body", [b"~\0\0\0\2\0", b"~\0\0\0\2\0\6\0\0\0\2{}", b"~\0\0\0\2\4\0\0\0\3\3cpu" + bytes(8)])
def test_a_guest_that_forges_the_end_of_a_section_can_be_saved(target: str, body: bytes) -> None:
    devices = (Section(name="serial", body=b"x" + body + b"y"), Section(name="cpu"))
    for made in (devices, devices[:1]):
        with ScriptedGuest({"ram": "A", "bios": "B"}, device_state=device_bytes(made), small=["bios"]) as guest:
            save(guest, target, BUFFERED)
        with Image(target) as image:
            assert [each.name for each in image.file.devices] == [each.name for each in made]
            assert image.clone_blocks() == {"bios"}


# --- put together from a file


def written(clone: CloneStream, source: Image, base: int) -> bytes:
    """The bytes of a clone stream, written to memory."""
    memory = MemoryChannel(clone.end(base))
    clone.write(source.channel, memory, base)
    return memory.memory[base:]


@pytest.mark.parametrize("base", [0, 5000])
def test_any_file_with_devices_amounts_to_the_clone_stream_that_a_save_would_write(
    file: str, tmp_path: Path, base: int
) -> None:
    blocks = [Block(name=name, picture=saved_as(RAM[name], firmware=name in ("bios", "rom"))) for name in RAM]
    made = stream(*blocks, devices=DEVICES, machine="scripted", base=123, vmdesc=None)
    (tmp_path / "QEMU").write_bytes(made.data)
    with Image(file) as ours, Image(str(tmp_path / "QEMU"), offset=123) as theirs:
        trailer = ours.file.trailer
        assert trailer is not None
        stored = ours.channel.bytes_at(trailer.clone_offset, trailer.clone_end - trailer.clone_offset)
        assert written(clone_stream_of(ours, ["ram"]), ours, trailer.clone_offset)[: len(stored)] == stored
        of_theirs, of_ours = clone_stream_of(theirs, {"ram"}), clone_stream_of(ours, {"ram"})
        assert written(of_theirs, theirs, base) == written(of_ours, ours, base)


@pytest.mark.parametrize(
    ("make", "main", "reason"),
    [
        (lambda: stream(Block(), Block(name="bios"), devices=()), ["m"], "has no device state"),
        (lambda: stream(Block()), ["m"], "no RAMBlock besides main memory"),
        (lambda: stream(Block(), Block(name="bios")), ["m", "bios"], "no RAMBlock besides main memory"),
    ],
)
def test_a_file_that_no_guest_can_be_started_from_has_no_clone_stream(
    tmp_path: Path, make: Callable[[], Stream], main: list[str], reason: str
) -> None:
    (tmp_path / "FILE").write_bytes(make().data)
    with Image(str(tmp_path / "FILE")) as image, pytest.raises(RequestError, match=reason):
        clone_stream_of(image, main)
