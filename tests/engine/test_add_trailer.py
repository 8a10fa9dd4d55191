"""A file by QEMU gets our trailer in place; if that fails, it is the file that it was, to the byte."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.damage import flip
from support.examples import some_of
from support.observers import Heard
from support.pictures import allocated_pages
from support.streamwriter import PAGE, Block, Stream, stream
from support.system_calls import answered

from parallel_fixedram.core.errors import FixedRamError, HostError, NoFileError, RequestError, WorkerError
from parallel_fixedram.engine.pages.digest import DigestJob
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.format.trailer import FOOTER_BYTES
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.image import add_trailer as add_trailer_module
from parallel_fixedram.image.add_trailer import add_trailer
from parallel_fixedram.image.clone_stream import CloneStream
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.stale import punch_stale_pages, refuse_stale_pages, reopen_writable
from parallel_fixedram.image.verify import verify

M = Block(name="m", picture="A0C." * 70)
SMALL = (Block(name="bios", picture="B."), Block(name="vram", picture="0" * 65 + "V"))
FILES = {
    "plain": partial(stream, M, *SMALL),
    "behind a prefix": partial(stream, M, *SMALL, base=5001),
    "small block first": partial(stream, *SMALL, M),
    "no description": partial(stream, M, *SMALL, vmdesc=None),
    "pages at 1 MiB": partial(stream, M, *SMALL, alignment=1 << 20),
    "padded to a sector": partial(stream, M, *SMALL, tail=bytes(511)),
    "padded as far as it goes": partial(stream, M, *SMALL, tail=bytes(4095)),
}
"""What makes each file: files themselves would be in the memory of every process that a test forks."""


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Stream:
    """The file that the parameter makes."""
    file = request.param()
    assert isinstance(file, Stream)
    return file


def add(path: Path, base: int = 0, *, channels: int = 1) -> None:
    with Image(str(path), offset=base) as image:
        add_trailer(image, ["m"], channels=channels)


def written(tmp_path: Path, made: Stream) -> Path:
    path = tmp_path / "FILE"
    path.write_bytes(made.data)
    return path


@pytest.mark.parametrize("channels", some_of([3, 1], 2))
@pytest.mark.parametrize("made", FILES.values(), ids=FILES.keys(), indirect=True)
def test_the_file_keeps_its_bytes_and_has_a_trailer_behind_them(tmp_path: Path, made: Stream, channels: int) -> None:
    path, end, base = written(tmp_path, made), made.marks["stream_end"], made.marks["magic"]
    add(path, base, channels=channels)
    data = path.read_bytes()
    assert data[:end] == made.data[:end]
    assert len(data) % PAGE == 0
    with Image(str(path), offset=base) as image:
        trailer = image.file.trailer
        assert trailer is not None
        assert trailer.offset == -(-end // PAGE) * PAGE
        assert not any(data[end : trailer.offset])
        assert image.clone_blocks() == {"bios", "vram"}
        report = verify(image, channels=channels)
        assert (report.ok, report.digests) == (True, True)


def test_afterwards_every_byte_has_a_digest(tmp_path: Path) -> None:
    made = stream(Block(name="m", picture="A0"), Block(name="bios", picture="B"))
    path = written(tmp_path, made)
    add(path)
    size = path.stat().st_size
    within_stream = range(made.marks["eos"], made.marks["stream_end"], 29)
    for offset in [*some_of(range(0, size, 613), 5), *some_of(within_stream, 5), size - 1]:
        flip(path, offset)
        try:
            with Image(str(path)) as image:
                assert not verify(image).ok, f"at {offset:#x}"
        except FixedRamError:
            pass  # the structure itself gave it away
        flip(path, offset)
    with Image(str(path)) as image:
        assert verify(image).ok


def test_the_footer_comes_when_the_rest_is_on_stable_storage(tmp_path: Path) -> None:
    path = written(tmp_path, FILES["plain"]())

    def attempt() -> int:
        add(path)
        return path.stat().st_size

    found = answered(attempt, lambda *_: None, under=str(path))
    footer = found.value - FOOTER_BYTES
    happened = [
        (call.name, call.name == "pwrite64" and call.args[3] >= footer)
        for call in found.calls
        if call.name in ("pwrite64", "fsync")
    ]
    assert happened[-3:] == [("fsync", False), ("pwrite64", True), ("fsync", False)]
    assert not any(is_footer for _, is_footer in happened[:-2])


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written, and then the device says no."""
    monkeypatch.setattr(FileChannel, "sync", fail_with(HostError("cannot sync", errno=errno.EIO)))


FAILURES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], type[BaseException]]] = {
    "a worker fails": (lambda patch: patch.setattr(DigestJob, "run", fail_with(HostError("no", errno=5))), HostError),
    "the workers die": (lambda patch: patch.setattr(DigestJob, "run", die), WorkerError),
    "the clone stream": (lambda patch: patch.setattr(CloneStream, "write", fail_with(HostError("no"))), HostError),
    "the rest": (lambda patch: patch.setattr(add_trailer_module, "write_trailer", fail_with(KeyError())), KeyError),
    "a signal": (lambda patch: patch.setattr(CloneStream, "write", fail_with(KeyboardInterrupt())), KeyboardInterrupt),
    "the sync": (fail_late, HostError),
}  # fmt: skip


@pytest.mark.parametrize(
    "made", some_of([FILES["plain"], FILES["padded as far as it goes"], FILES["behind a prefix"]], 3), indirect=True
)
@pytest.mark.parametrize(("fail", "error"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_leaves_the_file_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Stream,
    fail: Callable[[pytest.MonkeyPatch], None],
    error: type[BaseException],
) -> None:
    path = written(tmp_path, made)
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(error):
            add(path, made.marks["magic"], channels=2)
    assert path.read_bytes() == made.data
    add(path, made.marks["magic"])  # and the way is free


@pytest.mark.parametrize("room", [-1, 0, 1, PAGE, 5 * PAGE])
def test_a_file_that_may_not_grow_is_as_it_was(tmp_path: Path, room: int) -> None:
    made = FILES["padded to a sector"]()
    path = written(tmp_path, made)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(made.data) + room, limits[1]))
    try:
        with pytest.raises(HostError) as caught:
            add(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == made.data


def behind_its_end() -> Stream:
    """The rest of the stream lies between the page arrays: a trailer behind its end would lie on pages."""
    big, small = Block(name="m", picture="AB0-" * 9, pages_at=32 * PAGE), Block(name="s", picture="C", pages_at=PAGE)
    return stream(big, small)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            partial(stream, Block(name="m", picture="A-"), *SMALL),
            "stale bytes where 1 pages are zero, first block 'm' page 1 at 0x",
        ),
        (
            partial(stream, M, Block(name="bios", picture="B-")),
            "stale bytes where 1 pages are zero, first block 'bios' page 1 at 0x",
        ),
        (partial(stream, M, *SMALL, devices=()), "has no device state"),
        (partial(stream, M), "no RAMBlock besides main memory"),
        (behind_its_end, "has block 'm' after the end of its stream"),
        (
            partial(stream, Block(name="m", absent=True), *SMALL, capabilities=("x-ignore-shared", "mapped-ram")),
            "not contain all",
        ),
        (partial(stream, M, *SMALL, page_bits=16, alignment=1 << 16), "page size 65536, only 4096"),
    ],
    ids=["stale", "stale firmware", "no devices", "main only", "behind its end", "absent", "64 KiB pages"],
    indirect=["made"],
)
def test_a_file_that_cannot_have_one_is_refused_and_not_touched(tmp_path: Path, made: Stream, reason: str) -> None:
    path = written(tmp_path, made)
    before = path.stat()
    with pytest.raises(RequestError, match=reason):
        add(path)
    assert path.read_bytes() == made.data
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_that_has_a_trailer_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = written(tmp_path, FILES["plain"]())
    add(path)
    data = path.read_bytes()
    with pytest.raises(RequestError, match="already has a trailer"):
        add(path)
    assert path.read_bytes() == data


def test_progress_goes_up_to_the_total(tmp_path: Path) -> None:
    heard = Heard()
    with Image(str(written(tmp_path, FILES["plain"]()))) as image:
        add_trailer(image, ["m"], channels=2, observer=heard)
        pages = sum(image.bitmap(saved.block.idstr).count() for saved in image.blocks)
    assert heard.done == {"digest": (pages * PAGE, pages * PAGE)}


# --- stale pages


def has_stale_pages(image: Image, saved: SavedBlock) -> bool:
    try:
        refuse_stale_pages(image, [saved], channels=2)
    except RequestError:
        return True
    return False


STALE = Block(name="m", picture="A-0." * 64 + "-")


def test_a_block_has_stale_pages_where_its_zero_pages_are_not(tmp_path: Path) -> None:
    with Image(str(written(tmp_path, stream(STALE, *SMALL)))) as image:
        assert [has_stale_pages(image, saved) for saved in image.blocks] == [True, False, False]


@pytest.mark.parametrize("page", [1, 63, 64, 65, 255, 256])
def test_one_byte_makes_a_page_stale(tmp_path: Path, page: int) -> None:
    made = stream(Block(name="m", picture="A" + "0" * 256))
    path = written(tmp_path, made)
    for byte in (0, PAGE - 1):
        flip(path, made.marks["pages:m"] + page * PAGE + byte)
        with Image(str(path)) as image:
            assert has_stale_pages(image, image.block("m"))
        flip(path, made.marks["pages:m"] + page * PAGE + byte)
    with Image(str(path)) as image:
        assert not has_stale_pages(image, image.block("m"))


def test_punching_makes_holes_of_stale_pages_and_changes_nothing_else(tmp_path: Path) -> None:
    made = stream(STALE, *SMALL)
    path = written(tmp_path, made)
    with Image(str(path)) as image:
        contents = {saved.block.idstr: image.read_pages(saved.block.idstr, 0, 2) for saved in image.blocks}
        before = allocated_pages(image.channel.fd)
        assert punch_stale_pages(image) >= 65
        assert allocated_pages(image.channel.fd) <= before - 65
        assert not any(has_stale_pages(image, saved) for saved in image.blocks)
        assert punch_stale_pages(image) == 0
        assert {name: image.read_pages(name, 0, 2) for name in contents} == contents
    assert path.read_bytes() == stream(Block(name="m", picture="A00." * 64 + "0"), *SMALL).data
    add(path)


def test_a_file_that_was_replaced_is_not_opened_for_writing(tmp_path: Path) -> None:
    path = written(tmp_path, FILES["plain"]())
    with Image(str(path)) as image:
        os.close(reopen_writable(image))
        path.rename(tmp_path / "old")
        path.write_bytes(FILES["plain"]().data)
        with pytest.raises(RequestError, match="was replaced by another file"):
            reopen_writable(image)
        path.unlink()
        with pytest.raises(NoFileError, match="cannot open"):
            reopen_writable(image)


def test_a_file_of_the_same_number_on_another_file_system_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileChannel.stat
    with Image(str(written(tmp_path, FILES["plain"]()))) as image:

        def moved(channel: FileChannel) -> os.stat_result:
            found = list(real(channel))
            found[2] += channel is not image.channel  # st_dev
            return os.stat_result(found)

        monkeypatch.setattr(FileChannel, "stat", moved)
        with pytest.raises(RequestError, match="was replaced by another file"):
            reopen_writable(image)
