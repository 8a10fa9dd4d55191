"""Calls fail, and processes die, while a file is changed in place, leftovers are removed, or overlays are merged.

A file is prepared for clones: it is what it was, or has the trailer as well, and no page is another one. What a live
process holds stays. A guest whose disks are merged runs on, and its disks have what it wrote.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support import faults
from support.disks_of_guests import ManyDisks, make_images, numbers, read, write
from support.examples import thorough
from support.fault_matrix import Count
from support.faults import Decide, Fail, Kill, Run, Shorten
from support.leftovers import files, nothing_left
from support.prepared_file import Prepared
from support.qemu import QemuProcess, Ram, boot_from, require_qemu
from support.stages import in_turn, leaving_nothing

import parallel_fixedram
from parallel_fixedram.boot.run_folder import PREFIX, RunFolder, new_record
from parallel_fixedram.core.errors import FixedRamError, HostError, WorkerError
from parallel_fixedram.core.reports.clean import CleanReport
from parallel_fixedram.core.save_options import Disks
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host.processes.identity import ProcessIdentity
from parallel_fixedram.verbs import temporary

REASON = faults.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

ROW = "each call fails"
KILLED = "a process is killed at each call"
WRITING = {"openat", "ftruncate", "fallocate", "fsync", "pwrite64", "pwritev2"}


@pytest.fixture
def folder() -> Iterator[Path]:
    path = tempfile.mkdtemp(prefix="in-place-", dir="/dev/shm")
    yield Path(path)
    shutil.rmtree(path)


def run(folder: Path, action: Callable[[], object], decide: Decide) -> Run:
    """Run under faults; whatever they are, the end is an orderly one, and nothing is left."""
    with nothing_left(files, seconds=0):
        found = faults.run(lambda: leaving_nothing(action), under=str(folder), decide=decide)
    assert not found.hung, found.faults
    assert found.orphans == (), found.faults
    assert found.stderr == "", (found.faults, found.stderr)
    assert found.error is None or isinstance(found.error, FixedRamError), (found.faults, found.error)
    return found


def check_error(found: Run, number: int) -> None:
    if found.error is not None:
        assert isinstance(found.error, HostError), (found.faults, found.error)
        assert found.error.errno == number, (found.faults, found.error)


@pytest.mark.parametrize(
    ("number", "names"), [(errno.EIO, set()), (errno.ENOSPC, WRITING), (errno.EMFILE, {"openat"}), (errno.EINTR, set())]
)
def test_a_file_that_gets_a_trailer_is_what_it_was_where_a_call_fails(
    folder: Path, number: int, names: set[str], count: Count
) -> None:
    file = Prepared(folder, "A0C." * 70)

    def attempt(for_good: bool, decide: Decide) -> Run:
        file.renew()
        found = run(folder, file.add, decide)
        check_error(found, number)
        if found.error is None:
            assert file.has_trailer()
        elif not for_good:
            assert file.path.read_bytes() == file.data, found.faults
        file.check_added()
        return found

    for for_good in (False, True)[: 1 if number == errno.EINTR else 2]:
        fails = partial(attempt, for_good)
        done = in_turn(fails, lambda call, run: Fail(number), names=names, for_good=for_good, every_site=thorough())
        count(ROW, done)


@pytest.mark.parametrize("short", [Shorten(1), Shorten(part=1 / 3), Shorten(0)], ids=["one byte", "a third", "nothing"])
def test_a_file_that_gets_a_trailer_is_what_it_was_or_has_it_where_writes_are_short(
    folder: Path, short: Shorten, count: Count
) -> None:
    file = Prepared(folder, "A0C." * 70)

    def attempt(decide: Decide) -> Run:
        file.renew()
        found = run(folder, file.add, decide)
        assert (found.error is None) == (not found.faults or short.length != 0), (found.faults, found.error)
        assert found.error is None or file.path.read_bytes() == file.data, found.faults
        file.check_added()
        return found

    count("short writes", in_turn(attempt, lambda call, run: short, names={"pwrite64", "pwritev2"}, every_site=True))


def test_no_page_of_a_file_that_gets_a_trailer_is_another_one_whoever_dies(folder: Path, count: Count) -> None:
    file = Prepared(folder, "A0C." * 70)

    def attempt(victim: Callable[[faults.Call, Run], Kill], code: int, decide: Decide) -> Run:
        file.renew()
        found = run(folder, file.add, decide)
        assert found.exit_code == (code if found.faults else 0), found.faults
        if found.error is not None:
            assert isinstance(found.error, WorkerError), (found.faults, found.error)  # so small a file has one
            assert file.path.read_bytes() == file.data, found.faults
        file.check_added()
        return found

    for victim, code in (
        (lambda call, run: Kill([run.root]), -signal.SIGKILL),
        (lambda call, run: Kill([call.pid]), 0),
    ):
        count(
            KILLED,
            in_turn(partial(attempt, victim, code), victim, by_worker=None if code else True, every_site=thorough()),
        )


def test_holes_are_punched_where_a_call_fails_or_who_punches_dies_by_the_next_try(folder: Path, count: Count) -> None:
    file = Prepared(folder, "A-0." * 64 + "-")

    def attempt(number: int, decide: Decide) -> Run:
        file.renew()
        found = run(folder, file.punch, decide)
        check_error(found, number)
        file.check_punched()
        return found

    for number in (errno.EIO, errno.ENOSPC, errno.EINTR):
        count(ROW, in_turn(partial(attempt, number), lambda call, run, n=number: Fail(n), every_site=True))
    count(KILLED, in_turn(partial(attempt, 0), lambda call, run: Kill([run.root]), every_site=True))


# --- clean --remove

OVERLAY = "disk.img.fixedram-20260101-000000.qcow2"
RUN_FOLDER = f"{PREFIX}efgh5678"
LEFT = {".dead.mr.part", OVERLAY, RUN_FOLDER, f"{PREFIX}abcd1234"}
KEPT = {".live.mr.part", "vm.mr", "disk.img"}


def litter(folder: Path) -> None:
    """What was left of each kind."""
    for name in (".dead.mr.part", OVERLAY):
        (folder / name).touch(mode=0o600)
    run_folder = folder / RUN_FOLDER / "0"
    for path in (run_folder.parent, run_folder):
        path.mkdir(mode=0o700, exist_ok=True)
    ended = ProcessIdentity(pid=1, started=1, boot="another", namespace="pid:[1]")
    RunFolder(str(run_folder)).write_record(new_record(ended, "/vm.mr"))
    temporary = folder / f"{PREFIX}abcd1234"
    temporary.mkdir(mode=0o700, exist_ok=True)
    for name in (".temporary", "scratch"):
        (temporary / name).touch(mode=0o600)


@pytest.mark.parametrize(
    ("number", "for_good"), [(errno.EIO, False), (errno.EMFILE, False)] + [(errno.EIO, True)] * thorough()
)
def test_clean_removes_nothing_that_lives_and_says_what_it_could_not(
    folder: Path, number: int, for_good: bool, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "_NEW_SECONDS", 0.0)  # nobody is about to use the empty ones
    for name in KEPT:
        (folder / name).write_bytes(b"RAM")
    (folder / ".live.mr.part").chmod(0o600)

    def attempt(decide: Decide) -> Run:
        litter(folder)
        found = run(folder, lambda: parallel_fixedram.clean(str(folder), remove=True), decide)
        there = set(os.listdir(folder))
        assert there >= KEPT, found.faults
        if found.error is None:
            check_told(found.value, folder, there)
        else:
            check_error(found, number)
        assert {os.path.basename(each.path) for each in parallel_fixedram.clean(str(folder), remove=True).found} >= (
            there - KEPT
        ), found.faults
        assert set(os.listdir(folder)) == KEPT, found.faults
        return found

    names = {"openat"} if number == errno.EMFILE else faults.BUT_CLOSE
    with open(folder / ".live.mr.part", "r+b") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        count(ROW, in_turn(attempt, lambda call, run: Fail(number), names=names, for_good=for_good))


def check_told(report: CleanReport, folder: Path, there: set[str]) -> None:
    """What it says was removed is gone, and what is not gone it does not say so of."""
    removed = {os.path.basename(each.path) for each in report.found if each.removed}
    assert removed & there == set()
    assert LEFT - there <= removed | {name for name in LEFT if name not in there}


# --- disks commit


@pytest.fixture(scope="module")
def ticker(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    require_qemu()
    path = tmp_path_factory.mktemp("ticker") / "image"
    path.write_bytes(boot_image(end=8 << 20))
    return boot_from(path)


@pytest.mark.qemu
@pytest.mark.parametrize(("number", "names"), [(errno.EIO, faults.BUT_CLOSE), (errno.EMFILE, {"openat"})])
def test_overlays_are_merged_by_the_next_try_where_a_call_fails_or_who_merges_dies(
    ticker: list[str], folder: Path, tmp_path: Path, number: int, names: set[str], count: Count
) -> None:
    disks = make_images(folder)
    with QemuProcess(*ticker, *disks.one(), ram=Ram(32 << 20), machine="pc") as guest:
        guest.wait_serial("C")
        times = iter(range(1, 256))

        def attempt(decide: Decide) -> Run:
            written = next(times)
            save_on_overlays(guest, tmp_path / "vm.mr")
            write(guest, written)
            found = run(folder, lambda: commit(guest), decide)
            assert guest.status() == "running"
            commit(guest)
            remove_told(folder, found)
            check_merged(guest, disks, written, tmp_path)
            return found

        done = in_turn(attempt, lambda call, run: Fail(number), names=names)
        count(ROW, done)
        if number == errno.EIO:
            count(KILLED, in_turn(attempt, lambda call, run: Kill([run.root])))


def save_on_overlays(guest: QemuProcess, path: Path) -> None:
    with parallel_fixedram.open_qemu(str(guest.monitor_path)) as machine:
        parallel_fixedram.save(
            machine,
            str(path),
            disks=Disks(mode="overlay"),
            publishing=parallel_fixedram.Publishing(overwrite=True, durability="none"),
        )


def commit(guest: QemuProcess) -> None:
    with parallel_fixedram.open_qemu(str(guest.monitor_path)) as machine:
        parallel_fixedram.commit_disks(machine)


def remove_told(folder: Path, found: Run) -> None:
    """An overlay that was merged and could not be removed is named: by the error, or by `clean` if who merged died."""
    for path in folder.glob("*fixedram-*"):
        told = found.error.message if isinstance(found.error, HostError) else ""
        if found.exit_code:
            told = str(parallel_fixedram.clean(str(folder)).found)
        assert repr(str(path)) in told, (found.faults, found.error)
        path.unlink()


def check_merged(guest: QemuProcess, disks: ManyDisks, written: int, scratch: Path) -> None:
    assert [path.name for path in disks.folder.iterdir() if "fixedram-" in path.name] == []
    assert guest.qmp("query-jobs") == []
    assert numbers(read(disks.raw, "raw", scratch)) == {written}
    guest.take_serial()
    guest.wait_serial("[A-Z]")
