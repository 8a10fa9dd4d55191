import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.channels import FailingChannel, RecordingChannel, Through
from support.examples import some_of
from support.leftovers import children
from support.models import ToldCosts, model
from support.pictures import PAGE, allocated_pages, content, draw, read_all, saved_picture
from support.refusing import Refuse
from support.saving import Heard, altered, save, several
from support.sources import ScriptedGuest, huge_file

from parallel_fixedram.core.errors import CapabilityError, DurabilityError, FixedRamError, HostError, RequestError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.save_options import Cache, DirectIO, Durability
from parallel_fixedram.core.schemas import from_json, to_json
from parallel_fixedram.core.shards import WINDOW_PAGES_DIRECT
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.host import linux
from parallel_fixedram.host.files import aio
from parallel_fixedram.host.files.space import Space
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.restore import Destination, restore
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_files import RamFile, RamFiles

BUFFERED = several(direct_io=DirectIO.OFF)
PAST_THE_CACHE = model(direct={1: (1, 0.1)}, buffered={1: (10, 1)}, stable=(10, 1))
THROUGH_THE_CACHE = model(direct={1: (10, 1)}, buffered={1: (1, 0.1)}, stable=(1, 0.1), compare=10, overlap=0.0)
PICTURE = "A0-b" + "-" * 70 + "C" * 300 + "0" * 20 + "-" * 5 + "D" + "-" * 62
LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def folder(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


def saved(picture: str) -> str:
    """The picture of a file that holds RAM of this picture."""
    return picture.replace("0", "-")


@pytest.mark.parametrize("channels", some_of([1, 5, 2], 2))
@pytest.mark.parametrize("gap", some_of([16, 0], 2))
@pytest.mark.parametrize("direct_io", [DirectIO.OFF, DirectIO.AUTO])
def test_the_file_holds_what_ram_holds_at_its_fixed_places(
    target: str, channels: int, gap: int, direct_io: DirectIO
) -> None:
    with ScriptedGuest({"ram": PICTURE}, running=False) as guest:
        save(guest, target, several(channels=channels, direct_io=direct_io, gap_pages=gap))
    assert saved_picture(target) == saved(PICTURE)
    with Image(target) as image:
        assert verify(image).ok
        assert image.block("ram").header.pages_offset % MIB == 0
    assert folder(target) == ["FILE"]


@pytest.mark.parametrize("pages", some_of([1, 2, 63, 64, 65, 255, 256, 257], 3))
def test_blocks_of_any_number_of_pages_are_saved(target: str, pages: int) -> None:
    picture = ("A0-b" * 65)[:pages]
    with ScriptedGuest({"ram": picture, "one": "Z", "none": "-"}, running=False) as guest:
        save(guest, target, altered(BUFFERED, channels=3))
    assert [saved_picture(target, name) for name in ("ram", "one", "none")] == [saved(picture), "Z", "-"]
    with Image(target) as image:
        assert verify(image).ok


def test_many_blocks_are_saved_in_their_order(target: str) -> None:
    ram = {f"block-{index}": LATIN[index % 26] * (index % 7 + 1) for index in range(40)}
    with ScriptedGuest(ram, running=False) as guest:
        report = save(guest, target, altered(BUFFERED, channels=4))
    assert [block.idstr for block in report.blocks] == list(ram)
    assert {name: saved_picture(target, name) for name in ram} == ram


def test_ram_that_holds_nothing_is_a_file_of_holes(target: str) -> None:
    with ScriptedGuest({"ram": "-" * 512}, running=False) as guest:
        report = save(guest, target, BUFFERED)
    assert report.bytes.allocated < 10 * PAGE < report.bytes.file
    with Image(target) as image:
        assert verify(image).ok


def test_a_block_on_huge_pages_is_saved_and_none_is_taken(target: str) -> None:
    with huge_file(3) as file:
        file.draw("A0" + "-" * 500 + "z")
        before = os.fstat(file.fd).st_blocks
        with RamFiles([RamFile(idstr="ram", path=file.path)], name="raw") as machine:
            report = save(machine, target, altered(BUFFERED, channels=2))
            assert report.blocks[0].data_pages == 2
            with Image(target) as image:
                assert verify(image, ram={"ram": machine.guest_blocks()[0]}).ok
        assert os.fstat(file.fd).st_blocks == before
    assert saved_picture(target)[:503] == "A" + "-" * 501 + "z"


def test_a_part_of_a_file_is_saved_as_a_block(target: str, tmp_path: Path) -> None:
    with (tmp_path / "ram").open("w+b") as file:
        draw(file.fileno(), "XYA-B")
    with RamFiles([RamFile(idstr="ram", path=str(tmp_path / "ram"), offset=2 * PAGE)], name="raw") as machine:
        save(machine, target, BUFFERED)
    assert saved_picture(target) == "A-B"


@pytest.mark.parametrize("gap", some_of([16, 0], 2))
@pytest.mark.parametrize("running", [False, True])
def test_saving_verifying_and_restoring_leave_memory_as_large_as_it_was(
    target: str, tmp_path: Path, gap: int, running: bool
) -> None:
    picture = "A-A--A" + "0-" * 40 + "-" * 300 + "B-0-B" * 60
    with ScriptedGuest({"ram": picture}, running=running) as guest:
        fd = guest.fds["ram"]
        before = allocated_pages(fd)
        save(guest, target, altered(BUFFERED, channels=2, gap_pages=gap))
        assert allocated_pages(fd) == before
        with Image(target) as image:
            assert verify(image, ram={"ram": guest.guest_blocks()[0]}, channels=2).ok
            assert allocated_pages(fd) == before
            restore(image, {"ram": Destination(path=f"/proc/{os.getpid()}/fd/{fd}")}, channels=2)
            assert allocated_pages(fd) <= before
            restore(image, {"ram": Destination(path=str(tmp_path / "new"))})
        assert read_all(fd) == (tmp_path / "new").read_bytes() == content(picture)


@pytest.mark.parametrize("running", [True, False])
def test_a_page_first_touched_after_the_data_map_was_asked_is_not_lost(target: str, running: bool) -> None:
    """Also when the machine has stopped by itself by the time it is paused, as a guest that shuts down does."""
    with ScriptedGuest({"ram": "A--0-" + "-" * 100}, ["..B.." + "." * 99 + "C"], running=running) as guest:
        save(guest, target, altered(BUFFERED, gap_pages=16))
        before = allocated_pages(guest.fds["ram"])
        assert before == 4
    assert saved_picture(target) == "A-B--" + "-" * 99 + "C"


def test_the_guest_is_paused_once_asked_for_its_devices_and_resumed(target: str) -> None:
    with ScriptedGuest({"ram": "A"}) as guest:
        report = save(guest, target, BUFFERED)
        assert guest.calls == ["pause", "device_state", "resume"]
        assert guest.running
    assert 0 < report.seconds.pause < report.seconds.total


def test_time_counts_as_pause_only_for_a_machine_that_ran(target: str) -> None:
    with ScriptedGuest({"ram": "A"}, running=False) as guest:
        assert save(guest, target, BUFFERED).seconds.pause == 0
        assert not guest.running


def test_a_report_survives_its_way_through_json(target: str) -> None:
    with ScriptedGuest({"ram": PICTURE, "other": "AB"}) as guest:
        report = save(guest, target, altered(BUFFERED, channels=2, gap_pages=0, capabilities={"fixed-ram": True}))
    as_json = to_json(report)
    assert as_json["verb"] == "save"
    assert from_json(SaveReport, as_json) == report
    assert [(block.data_pages, block.zero_pages) for block in report.blocks] == [(303, len(PICTURE) - 303), (2, 0)]
    assert report.bytes.ram == (len(PICTURE) + 2) * PAGE
    assert report.bytes.file == os.stat(target).st_size
    assert report.bytes.written == 305 * PAGE
    assert len(report.workers) == report.channels == 2
    assert sum(worker.written_pages for worker in report.workers) == 305
    precopied, last = report.rounds
    assert (precopied.written_pages, last.dirty_pages, last.written_pages) == (305, 0, 0)


@pytest.mark.parametrize("running", [False, True])
def test_progress_goes_up_to_the_total(target: str, running: bool) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    heard = Heard()
    with ScriptedGuest({"ram": "A" * 3000}, running=running) as guest:
        save(guest, target, BUFFERED, observer=heard)
    for phase, *done in heard.progress:
        seen.setdefault(phase, []).append((done[0], done[1]))
    for phase in ("decide", "prepare", "sync"):
        assert set(seen.pop(phase)) == {(0, 0)}
    assert set(seen) == ({"first pass", "write"} if running else {"write"})
    for steps in seen.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1] == (3000 * PAGE, 3000 * PAGE)


@pytest.mark.slow
def test_no_worker_writes_what_another_one_writes(target: str, through: Through) -> None:
    """Invariant 1."""
    channels = through(lambda inner: RecordingChannel(inner, 64 * MIB))
    picture = ("A0B-" + "C" * 61) * 100
    with ScriptedGuest({"ram": picture, "second": picture}, running=False) as guest:
        save(guest, target, several(channels=4, direct_io=DirectIO.ON, gap_pages=16))
    events = channels[0].events()
    assert not [event for event in events if event.kind == "!"]
    assert len({event.pid for event in events}) > 1
    assert all(event.length <= WINDOW_PAGES_DIRECT * PAGE for event in events)
    assert saved_picture(target) == saved_picture(target, "second") == saved(picture)


def test_the_bytes_before_the_stream_are_kept(target: str) -> None:
    head = os.urandom(5000)
    Path(target).write_bytes(head + b"rest")
    with ScriptedGuest({"ram": PICTURE}, running=False) as guest:
        save(guest, f"file:{target},offset=5000", altered(BUFFERED, overwrite=True))
    assert Path(target).read_bytes()[:5000] == head
    with Image(target, offset=5000) as image:
        assert verify(image).ok
        assert image.read_pages("ram", 0, 4) == content("A0-b")


def same_bytes(a: str, b: str) -> bool:
    return subprocess.run(["cmp", "-s", a, b], check=False).returncode == 0


def test_direct_and_buffered_saves_are_the_same_bytes(target: str) -> None:
    with ScriptedGuest({"ram": PICTURE, "odd": "AB-"}, running=False, device_state=b"") as guest:
        save(guest, target, BUFFERED)
        try:
            report = save(guest, target + "2", several(direct_io=DirectIO.ON, channels=2))
        except HostError as error:
            pytest.skip(str(error))
    assert report.direct_io
    assert same_bytes(target, target + "2")


def test_a_stopped_and_a_running_machine_give_the_same_bytes(target: str) -> None:
    """Digests written along with the pages, and digests read back, are the same."""
    for name, running in ((target, False), (target + "2", True)):
        with ScriptedGuest({"ram": PICTURE}, running=running) as guest:
            save(guest, name, altered(BUFFERED, channels=2))
    assert same_bytes(target, target + "2")


def test_where_direct_io_is_refused_on_is_an_error_and_auto_says_what_it_did(
    target: str,
    costs: ToldCosts,
    refuse_direct_io: Callable[[], None],
    room_in_the_page_cache: Callable[[int], None],
) -> None:
    costs.model = PAST_THE_CACHE
    refuse_direct_io()
    room_in_the_page_cache(0)
    with ScriptedGuest({"ram": "AB"}) as guest:
        with pytest.raises(HostError, match="refuses direct I/O") as caught:
            save(guest, target, several(direct_io=DirectIO.ON))
        assert "auto" in caught.value.hint
        assert folder(target) == []
        assert guest.calls == []
        report = save(guest, target, several(direct_io=DirectIO.AUTO))
    assert not report.direct_io
    assert "page cache: the file system refuses direct I/O" in report.choice.why
    assert report.choice.model["direct"] == {}
    assert report.notes == ()
    assert saved_picture(target) == "AB"


@pytest.mark.parametrize(("device", "direct"), [("past", True), ("through", False)])
@pytest.mark.parametrize("running", [False, True])
def test_pages_go_the_way_that_is_predicted_to_be_faster(
    target: str, costs: ToldCosts, device: str, direct: bool, running: bool
) -> None:
    costs.model = PAST_THE_CACHE if device == "past" else THROUGH_THE_CACHE
    with ScriptedGuest({"ram": PICTURE}, running=running) as guest:
        report = save(guest, target, several())
    assert report.direct_io == report.choice.direct_io == direct
    assert (report.choice.capture == "compare") == running
    assert report.choice.why[int(running)].startswith("direct: " if direct else "page cache: ")
    assert saved_picture(target) == saved(PICTURE)


@pytest.mark.parametrize("depth", [0, 3])
def test_workers_have_as_many_writes_in_flight_as_asked_for(
    target: str, costs: ToldCosts, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    real = aio.Queue

    def queue(fd: int, requests: int, *more: Any) -> aio.Queue:
        assert requests == depth
        return real(fd, requests, *more)

    monkeypatch.setattr(aio, "Queue", queue)
    costs.model = PAST_THE_CACHE
    with ScriptedGuest({"ram": PICTURE}, running=False) as guest:
        report = save(guest, target, several(direct_io=DirectIO.ON, channels=1, queue_depth=depth))
    assert report.notes == ()
    assert saved_picture(target) == saved(PICTURE)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EAGAIN])
@pytest.mark.parametrize("direct_io", DirectIO)
def test_where_there_is_no_asynchronous_io_direct_writes_go_one_by_one_and_the_report_says_so(
    target: str,
    costs: ToldCosts,
    refuse: Refuse,
    code: int,
    direct_io: DirectIO,
) -> None:
    costs.model = PAST_THE_CACHE
    refuse(aio, "_call", code)
    with ScriptedGuest({"ram": PICTURE, "odd": "AB-"}, running=False) as guest:
        report = save(guest, target, several(direct_io=direct_io, channels=2))
    notes = ("the kernel allows no asynchronous I/O: direct writes are done one at a time",)
    assert report.notes == (notes if report.direct_io else ())
    assert report.direct_io is (direct_io is not DirectIO.OFF)
    assert saved_picture(target) == saved(PICTURE)
    with Image(target) as image:
        assert verify(image).ok


@pytest.mark.parametrize("direct_io", [DirectIO.ON, DirectIO.OFF])
def test_a_file_can_be_left_in_the_page_cache_or_taken_out_of_it(target: str, direct_io: DirectIO) -> None:
    left: dict[Cache, int | None] = {}
    with ScriptedGuest({"ram": "A" * 1000}, running=False) as guest:
        for cache in Cache:
            options = several(direct_io=direct_io, cache=cache, overwrite=True)
            left[cache] = save(guest, target, options).bytes.cached
            fd = os.open(target, os.O_RDONLY)
            if linux.is_tmpfs(fd) or left[cache] is None:
                os.close(fd)
                pytest.skip("the temporary folder is memory, or the kernel does not tell what is cached")
            assert linux.cachestat(fd) * PAGE <= left[cache] + (cache is Cache.KEEP) * PAGE
            os.close(fd)
            with Image(target) as image:
                assert verify(image).ok
    assert left[Cache.DROP] == 0
    kept = left[Cache.KEEP]
    assert kept is not None
    assert kept >= 1000 * PAGE if direct_io is DirectIO.OFF else 0 < kept < 500 * PAGE


def test_an_existing_file_is_refused_before_the_guest_is_touched(target: str) -> None:
    Path(target).write_bytes(b"old")
    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(RequestError, match="exists"):
            save(guest, target, BUFFERED)
        assert guest.calls == []
    assert Path(target).read_bytes() == b"old"


def test_a_pipe_is_refused_before_the_guest_is_touched(target: str) -> None:
    os.mkfifo(target)
    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(CapabilityError):
            save(guest, target, altered(BUFFERED, overwrite=True))
        assert guest.calls == []


def test_rounds_without_a_dirty_log_are_refused(target: str) -> None:
    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(RequestError, match="a dirty log, and this RAM has none"):
            save(guest, target, altered(BUFFERED, max_rounds=2))
        assert guest.calls == folder(target) == []


def test_a_file_that_cannot_be_synced_is_not_published(target: str, fail_sync: Callable[..., None]) -> None:
    """Invariant 4: and the guest goes on."""
    fail_sync(folders=False)
    Path(target).write_bytes(b"old")
    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(HostError, match=r"cannot sync .*: input/output error") as caught:
            save(guest, target, altered(BUFFERED, overwrite=True))
        assert type(caught.value) is HostError
        assert guest.running
    assert (folder(target), Path(target).read_bytes()) == (["FILE"], b"old")


def test_bitmaps_follow_the_last_page_the_sync_follows_all_and_the_name_comes_last(
    target: str, through: Through
) -> None:
    """Invariant 4."""
    names_at_sync: list[str] = []

    class Watched(RecordingChannel):
        def sync(self) -> None:
            names_at_sync.extend(folder(target))
            super().sync()

    made = through(buffered=lambda channel: Watched(channel, 16 * MIB))
    with ScriptedGuest({"ram": "AB-C" * 300}) as guest:
        save(guest, target, altered(BUFFERED, channels=3))
    with Image(target) as image:
        block = image.block("ram")
    calls = [(event.kind, event.offset) for event in made[0].events("WS")]
    pages = [i for i, (_, offset) in enumerate(calls) if block.header.pages_offset <= offset < block.pages_end]
    bitmap = calls.index(("W", block.header.bitmap_offset))
    assert max(pages) < bitmap
    assert [i for i, (kind, _) in enumerate(calls) if kind == "S"] == [len(calls) - 1]
    assert names_at_sync == [".FILE.part"]


def test_a_folder_that_cannot_be_synced_leaves_the_file_published(target: str, fail_sync: Callable[..., None]) -> None:
    fail_sync(folders=True)
    with ScriptedGuest({"ram": "AB"}) as guest, pytest.raises(DurabilityError):
        save(guest, target, BUFFERED)
    assert (folder(target), saved_picture(target)) == (["FILE"], "AB")


def test_without_durability_nothing_is_synced(target: str, refuse: Refuse) -> None:
    refuse(os, "fsync", errno.EIO)
    with ScriptedGuest({"ram": "AB"}) as guest:
        save(guest, target, altered(BUFFERED, durability=Durability.NONE))
    assert saved_picture(target) == "AB"


def test_a_kernel_that_cannot_start_writing_early_only_writes_later(target: str, refuse: Refuse) -> None:
    refuse(linux, "start_writeback", errno.ENOSYS)
    with ScriptedGuest({"ram": "AB"}) as guest:
        save(guest, target, BUFFERED)
    assert saved_picture(target) == "AB"


@pytest.mark.parametrize("successes", some_of(range(9), 4))
@pytest.mark.parametrize("running", [False, True])
def test_each_failing_write_of_a_page_fails_the_save_and_leaves_nothing(
    target: str, through: Through, successes: int, running: bool
) -> None:
    """A guest that runs is not stopped for it: its pages are written before."""
    through(lambda inner: FailingChannel(inner, errno=errno.EIO, successes=successes))
    with ScriptedGuest({"ram": "A-" * 10}, running=running) as guest:
        with pytest.raises(HostError, match="cannot write: input/output error"):
            save(guest, target, several(channels=2, direct_io=DirectIO.ON, gap_pages=0))
        assert guest.running == running
        calls = [call for call in guest.calls if call != "device_state"]  # nobody may ask for them any more
        assert calls == ([] if running else ["pause", "resume"])
    assert folder(target) == []


def break_pause(guest: ScriptedGuest) -> None:
    def act() -> None:
        raise HostError("no pause")

    guest.script = [act]


def test_a_machine_that_cannot_be_paused_is_told_to_go_on_and_nothing_is_left(target: str) -> None:
    with ScriptedGuest({"ram": "A"}) as guest:
        break_pause(guest)
        with pytest.raises(HostError, match="no pause"):
            save(guest, target, BUFFERED)
        assert guest.calls == ["pause", "resume"]
    assert folder(target) == []


def test_an_interrupt_while_the_guest_stands_still_lets_it_go_on_and_leaves_nothing(target: str) -> None:
    class Interrupt(Observer):
        def phase(self, name: str, total: int = 0) -> None:
            if name == "write":
                raise KeyboardInterrupt

    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(KeyboardInterrupt):
            save(guest, target, BUFFERED, observer=Interrupt())
        assert guest.calls[-1] == "resume"
        assert guest.running
    assert folder(target) == []


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, and room for a FILE in it."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_file_system_fails_the_save_and_gets_its_space_back(
    small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, reserve: bool
) -> None:
    if not reserve:
        monkeypatch.setattr(Space, "reserve", lambda *_: None)
    with ScriptedGuest({"ram": "A" * 1024}) as guest:
        with pytest.raises(HostError) as caught:
            save(guest, str(small_tmpfs / "FILE"), several(channels=2, durability=durability))
        assert caught.value.errno == errno.ENOSPC
        assert guest.running
    assert os.listdir(small_tmpfs) == []
    assert os.statvfs(small_tmpfs).f_bfree == os.statvfs(small_tmpfs).f_blocks


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_destination_fails_the_restore_and_what_was_made_is_gone(
    target: str, small_tmpfs: Path, existing: bool
) -> None:
    with ScriptedGuest({"ram": "A" * 1024}, running=False) as guest:
        save(guest, target, BUFFERED)
    path = small_tmpfs / "ram"
    if existing:
        path.touch()
        os.truncate(path, 1024 * PAGE)
    with Image(target) as image, pytest.raises(HostError) as caught:
        restore(image, {"ram": Destination(path=str(path))}, channels=2)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small_tmpfs) == (["ram"] if existing else [])


def test_too_few_descriptors_are_an_error_that_leaves_nothing(target: str, refuse: Refuse) -> None:
    import socket

    refuse(socket, "socketpair", errno.EMFILE)
    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(FixedRamError, match="cannot start a worker"):
            save(guest, target, BUFFERED)
        assert guest.calls == folder(target) == []


def test_the_built_in_guest_is_saved_while_it_runs_and_goes_on(target: str) -> None:
    with GuestProcess(GuestSpec.parse("hot,size=8MiB,fraction=0.6,rate=64MiB")) as guest:
        guest.start()
        report = save(guest, target, altered(BUFFERED, channels=2))
        assert guest.pause()
    assert report.seconds.pause > 0
    with Image(target) as image:
        assert verify(image).ok


@pytest.mark.slow
@pytest.mark.parametrize("scattered", [False, True])
def test_private_memory_does_not_grow_with_ram(target: str, tmp_path: Path, scattered: bool) -> None:
    path, size = tmp_path / "ram", 64 * GIB
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    step = GIB if scattered else 1 << 20
    for index in range(64 if scattered else 512):
        os.pwrite(fd, content(LATIN[index % 26]), index * step)
    path.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
    most = 0

    def sample(*_: object) -> None:
        nonlocal most
        most = max(most, sum(psutil.Process(pid).memory_full_info().uss for pid in children()))

    class Sampling(Observer):
        def advanced(self, size: int) -> None:
            sample()

    before = allocated_pages(fd)
    with RamFiles([RamFile(idstr="ram", path=str(path))], name="raw") as machine:
        save(machine, target, altered(BUFFERED, channels=4), observer=Sampling())
        assert allocated_pages(fd) == before
        with Image(target) as image:
            assert verify(image, ram={"ram": machine.guest_blocks()[0]}, channels=4, observer=Sampling()).ok
        assert allocated_pages(fd) == before
    os.close(fd)
    print(f"private memory of all workers: {most / MIB:.1f} MiB")
    assert 0 < most < 150 * MIB
