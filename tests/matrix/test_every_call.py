"""System calls that a save, a restore, a verify or a diff makes on its files fail in turn: once, or from then on.

Every call on every file fails with EIO, at every site of our code that makes it, but not again when the same site makes
it for another page. With ENOSPC, from then on, killed and interrupted, each call on each file is tried once, and ENOSPC
at every site by `make soak`. What one way to save has shown is not tried again in the next.

How the workers take turns is not decided here, so what is asserted holds for every order: a fault ends in a typed error
that keeps its errno, or does no harm; and whatever has the final name is complete.
"""

from __future__ import annotations

import errno
import itertools
import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import pytest
from support import faults
from support.examples import thorough
from support.fault_matrix import Count
from support.faults import Decide, Fail, Kill, Run, Shorten
from support.scarce import with_descriptors
from support.stages import MAIN_WAYS, UNLINKS, WAYS, Stage, Way, at_each_call, in_turn

import parallel_fixedram
from parallel_fixedram.cli.main import main
from parallel_fixedram.core.errors import DurabilityError, HostError, WorkerError

REASON = faults.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

WRITES = {"pwrite64", "pwritev", "pwritev2", "io_submit"}
WRITING = {"openat", "ftruncate", "fallocate", "fsync", "renameat", "renameat2"} | WRITES
"""Calls that a full file system can refuse."""
RETRIED = {"openat", "ftruncate", "fchmod", "flock", "fallocate", "pread64", "preadv2", "fsync"} | WRITES
"""Calls that a signal can interrupt: whoever makes them has to try again."""


@pytest.fixture
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="faults-", dir="/dev/shm")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def stage(folder: str) -> Stage:
    return Stage(folder, Way())


def at_every_site(number: int, *, for_good: bool) -> bool:
    """Whether a call on a file fails at each site of our code, or once for all."""
    return not for_good and (number == errno.EIO or thorough())


FULL_FOR_A_MOMENT = [pytest.param(errno.ENOSPC, WRITING, False, id="ENOSPC once")] if thorough() else []
"""A file system that was full, and is not any more: EIO once is answered by the same code."""
FAULTS = [
    pytest.param(errno.EIO, (), False, id="EIO once"),
    pytest.param(errno.EIO, (), True, id="EIO for good"),
    pytest.param(errno.ENOSPC, WRITING, True, id="ENOSPC for good"),
    *FULL_FOR_A_MOMENT,
]


@pytest.mark.parametrize(("number", "names", "for_good"), FAULTS)
def test_a_save_with_a_failing_call_leaves_the_old_file_or_the_new_one_and_says_which(
    folder: str, number: int, names: Collection[str], for_good: bool, count: Count
) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        stage.check_saved(run, published=run.error is None or isinstance(run.error, DurabilityError))
        if run.error is not None:
            assert isinstance(run.error, HostError), (run.faults, run.error)
            assert run.error.errno == number, (run.faults, run.error)
        if run.hit(*UNLINKS):
            stage.check_next_save()
        return run

    tried: set[tuple[object, ...]] = set()
    for way in WAYS:
        stage = Stage(folder, WAYS[way])
        done = in_turn(
            attempt,
            lambda call, run: Fail(number),
            names=names,
            for_good=for_good,
            every_site=at_every_site(number, for_good=for_good),
            tried=tried,
        )
        count("each call fails", done)


def test_a_save_goes_on_after_a_signal_interrupted_a_call(folder: str, count: Count) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        assert run.error is None, (run.faults, run.error)
        stage.check_saved(run, published=True)
        return run

    tried: set[tuple[object, ...]] = set()
    for way in WAYS:
        stage = Stage(folder, WAYS[way])
        done = in_turn(attempt, lambda call, run: Fail(errno.EINTR), names=RETRIED, tried=tried)
        count("each call fails", done)


@pytest.mark.parametrize(("number", "name"), [(errno.EINVAL, "lseek"), (errno.ENOSYS, "sync_file_range")])
def test_a_save_does_without_a_call_that_the_file_system_has_not(folder: str, number: int, name: str) -> None:
    stage = Stage(folder, WAYS["running, behind a prefix"])
    stage.before_save()

    run = stage.run(stage.save, lambda call, run: Fail(number) if call.name == name else None)

    assert run.hit(name)
    assert run.error is None
    stage.check_saved(run, published=True)


def test_a_save_does_without_reserved_space(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path), Way())
    stage.before_save()

    run = stage.run(stage.save, lambda call, run: Fail(errno.EOPNOTSUPP) if call.name == "fallocate" else None)

    assert run.hit("fallocate")
    assert run.error is None
    stage.check_saved(run, published=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_cannot_be_synced_is_a_durability_error_and_the_file_is_complete(folder: str, way: str) -> None:
    stage = Stage(folder, WAYS[way])
    stage.before_save()

    run = stage.run(
        stage.save, lambda call, run: Fail(errno.EIO) if call.name == "fsync" and call.path == folder else None
    )

    assert isinstance(run.error, DurabilityError)
    assert run.error.exit_code == 6
    stage.check_saved(run, published=True)


def test_an_unsynced_file_is_never_published_and_its_sync_never_repeated(stage: Stage) -> None:
    stage.before_save()

    run = stage.run(stage.save, lambda call, run: Fail(errno.EIO) if call.name == "fsync" else None)

    assert [call.path for call in run.faults] == [str(stage.part)]
    assert isinstance(run.error, HostError)
    assert not isinstance(run.error, DurabilityError)
    stage.check_saved(run, published=False)


def test_a_save_does_without_facts_about_the_host(stage: Stage) -> None:
    stage.before_save()

    run = faults.run(stage.save, under="/proc", decide=lambda call, run: Fail(errno.EIO))

    assert run.hit("openat")
    assert (run.error, run.stderr) == (None, "")
    stage.check_saved(run, published=True)


def test_the_command_reports_a_fault_in_one_line_and_an_exit_code(
    stage: Stage, count: Count, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["save", stage.uri, "--channels", "2", "--experimental-multifd"]
    for idstr, path in stage.ram.items():
        argv += ["--ram", f"{idstr}={path}"]

    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(lambda: main(argv), decide)
        assert run.error is None, (run.faults, run.error)
        assert run.value in (0, 5, 6), (run.faults, run.stderr)
        stage.check_saved(run, published=run.value in (0, 6))
        complaints = [line for line in run.stderr.splitlines() if "error:" in line]
        assert len(complaints) == (run.value != 0), (run.faults, run.stderr)
        assert "unexpected" not in run.stderr, (run.faults, run.stderr)
        return run

    stage.before_save()
    assert main(argv) == 0  # imports whatever the command imports late
    done = in_turn(attempt, lambda call, run: Fail(errno.EIO))
    capfd.readouterr()
    count("each call fails", done)


LENGTHS = {
    "over an old file, direct": [1, 511, 4096, 5000],
    "a new file": [1, 5000],
    "running, behind a prefix": [511, 4096],
}
"""Of short writes. Bypassing the page cache they differ by the device's block size; else they meet the same code."""


@pytest.mark.parametrize(("way", "length"), [(way, length) for way, lengths in LENGTHS.items() for length in lengths])
def test_if_all_writes_are_short_the_whole_file_is_there_or_an_error(
    folder: str, way: str, length: int, count: Count
) -> None:
    stage = Stage(folder, WAYS[way])

    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        direct = "direct" in way and length % 4096  # nobody can go on from there without the page cache
        assert run.error is None or (direct and isinstance(run.error, HostError)), (run.faults, run.error)
        stage.check_saved(run, published=run.error is None)
        return run

    done = in_turn(attempt, lambda call, run: Shorten(max(length, 4096)), names={"pwrite64"}, for_good=True)
    count("short writes", done)


SHORT = {"one byte": Shorten(1), "a third": Shorten(part=1 / 3), "nothing": Shorten(0)}


@pytest.mark.parametrize("short", SHORT)
def test_any_short_write_ends_in_the_whole_file_or_in_an_error(folder: str, short: str, count: Count) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        may_fail = short == "nothing" or run.hit("io_submit")  # nobody can go on there but in whole blocks
        assert run.error is None or (may_fail and isinstance(run.error, HostError)), (run.faults, run.error)
        stage.check_saved(run, published=run.error is None)
        return run

    tried: set[tuple[object, ...]] = set()
    for way in WAYS:
        stage = Stage(folder, WAYS[way])
        if way in MAIN_WAYS:
            done = at_each_call(attempt, lambda call, run: SHORT[short], WRITES)
        else:
            done = in_turn(attempt, lambda call, run: SHORT[short], names=WRITES, every_site=True, tried=tried)
        count("short writes", done)


def test_a_save_that_runs_out_of_descriptors_at_any_moment_fails_and_leaves_nothing(folder: str, count: Count) -> None:
    for way in WAYS:
        stage = Stage(folder, WAYS[way])
        for spare in itertools.count():
            stage.before_save()
            run = stage.run(partial(with_descriptors, spare, stage.save), lambda call, run: None)
            stage.check_saved(run, published=run.error is None)
            if run.error is None and run.value.choice.capture == stage.way.capture:
                break
            assert run.error is None or isinstance(run.error, HostError), (spare, run.error)
        count("each call fails", spare)


@pytest.mark.parametrize("name", ["restore", "verify", "diff"])
def test_whoever_runs_out_of_descriptors_at_any_moment_is_not_wrong(stage: Stage, name: str, count: Count) -> None:
    shutil.copy(stage.file, f"{stage.folder}/copy.mr")
    diff(stage)  # imports what it imports late
    action = {"restore": stage.restore, "verify": partial(verify, stage), "diff": partial(diff, stage)}[name]
    for spare in itertools.count():
        stage.before_restore()
        run = stage.run(partial(with_descriptors, spare, action), lambda call, run: None)
        if run.error is None:
            break
        assert isinstance(run.error, HostError), (spare, run.error)
        stage.check_not_restored(kept=False)
    assert name == "restore" or run.value is True
    count("each call fails", spare)


def test_a_save_survives_the_death_of_a_worker_at_any_call(folder: str, count: Count) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        assert run.error is None, (run.faults, run.error)
        stage.check_saved(run, published=True)
        return run

    tried: set[tuple[object, ...]] = set()
    for way in WAYS:
        stage = Stage(folder, WAYS[way])
        done = in_turn(attempt, lambda call, run: Kill([call.pid]), by_worker=True, every_site=True, tried=tried)
        count("a process is killed at each call", done)


@pytest.mark.parametrize("way", WAYS)
def test_a_save_that_loses_all_workers_fails_and_leaves_nothing(folder: str, way: str, count: Count) -> None:
    stage = Stage(folder, WAYS[way])

    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)
        begun_again = stage.way.capture == "snapshot" and run.error is None  # by comparing, which takes others
        if run.faults and not begun_again:
            assert isinstance(run.error, WorkerError), (run.faults, run.error)
        stage.check_saved(run, published=not run.faults or begun_again)
        return run

    done = in_turn(attempt, lambda call, run: Kill(run.workers()), names=WRITES, by_worker=True)
    count("a process is killed at each call", done)


def test_the_death_of_the_coordinator_at_any_call_leaves_a_complete_file_or_none_and_no_worker(
    folder: str, count: Count
) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_save()
        run = stage.run(stage.save, decide)  # which checks that no worker is left
        there = stage.file.read_bytes() if stage.file.exists() else b""
        assert there in (stage.way.old, stage.new), run.faults
        assert (run.exit_code == -signal.SIGKILL) == bool(run.faults)
        stage.check_next_save()
        return run

    tried: set[tuple[object, ...]] = set()
    for way in WAYS:
        stage = Stage(folder, WAYS[way])
        done = in_turn(attempt, lambda call, run: Kill([run.root]), tried=tried)
        count("a process is killed at each call", done)


@pytest.mark.parametrize(("number", "names", "for_good"), FAULTS)
def test_a_restore_with_a_failing_call_fills_all_ram_or_fails_and_removes_what_it_made(
    stage: Stage, number: int, names: Collection[str], for_good: bool, count: Count
) -> None:
    def attempt(picture: str, decide: Decide) -> Run:
        stage.before_restore(picture)
        run = stage.run(stage.restore, decide)
        if run.error is None:
            stage.check_restored()
            return run
        assert isinstance(run.error, HostError), (run.faults, run.error)
        assert run.error.errno == number, (run.faults, run.error)
        cannot_remove = run.hit(*UNLINKS) or any(call.name == "newfstatat" for call in run.faults[1:])
        if not cannot_remove:
            stage.check_not_restored(kept=bool(picture))
        return run

    options = {"names": names, "for_good": for_good, "tried": set()}
    options["every_site"] = at_every_site(number, for_good=for_good)
    for picture in ("", "X"):  # new files, and files full of something else
        done = in_turn(partial(attempt, picture), lambda call, run: Fail(number), **options)
        count("each call fails", done)


def test_a_restore_goes_on_after_signals_short_writes_and_dead_workers(stage: Stage, count: Count) -> None:
    def attempt(picture: str, decide: Decide) -> Run:
        stage.before_restore(picture)
        run = stage.run(stage.restore, decide)
        assert run.error is None, (run.faults, run.error)
        stage.check_restored()
        return run

    interrupted: set[tuple[object, ...]] = set()
    killed: set[tuple[object, ...]] = set()
    for picture in ("", "X"):  # new files, and files full of something else
        onto = partial(attempt, picture)
        done = in_turn(onto, lambda call, run: Fail(errno.EINTR), names=RETRIED, tried=interrupted)
        done += in_turn(onto, lambda call, run: Shorten(5000), names={"pwrite64"}, every_site=True)
        done += in_turn(onto, lambda call, run: Kill([call.pid]), by_worker=True, every_site=True, tried=killed)
        count("each call fails", done)


def test_a_restore_that_loses_all_workers_fails_and_removes_what_it_made(stage: Stage, count: Count) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_restore()
        run = stage.run(stage.restore, decide)
        if run.faults:
            assert isinstance(run.error, WorkerError), (run.faults, run.error)
            stage.check_not_restored(kept=False)
        return run

    done = in_turn(attempt, lambda call, run: Kill(run.workers()), names={"pwrite64", "preadv2"}, by_worker=True)
    count("a process is killed at each call", done)


def test_a_restore_whose_coordinator_dies_leaves_no_worker(stage: Stage, count: Count) -> None:
    def attempt(decide: Decide) -> Run:
        stage.before_restore("X")
        run = stage.run(stage.restore, decide)
        assert (run.exit_code == -signal.SIGKILL) == bool(run.faults)
        stage.restore()
        stage.check_restored()
        return run

    done = in_turn(attempt, lambda call, run: Kill([run.root]))
    count("a process is killed at each call", done)


def verify(stage: Stage) -> bool:
    return parallel_fixedram.verify(stage.uri, ram=stage.ram, channels=2).ok


def diff(stage: Stage) -> bool:
    return parallel_fixedram.diff(str(stage.file), f"{stage.folder}/copy.mr", channels=2).equal


@pytest.mark.parametrize(
    ("sound", "for_good"),
    [(True, False), (True, True), (False, False)],
    ids=["a sound file, once", "a sound file, for good", "a damaged file, once"],
)
@pytest.mark.parametrize("look", [verify, diff])
def test_a_look_at_a_file_with_a_failing_call_is_never_wrong(
    stage: Stage, look: Callable[[Stage], bool], sound: bool, for_good: bool, count: Count
) -> None:
    shutil.copy(stage.file, f"{stage.folder}/copy.mr")
    if not sound:
        with stage.file.open("r+b") as file:
            file.seek((1 << 20) + 5000)  # the pages of the first block start at 1 MiB
            file.write(b"damaged")

    def attempt(decide: Decide) -> Run:
        run = stage.run(lambda: look(stage), decide)
        if run.error is None:
            assert run.value is sound, run.faults
            assert not run.hit("pread64", "preadv2"), run.faults
        else:
            assert isinstance(run.error, HostError), (run.faults, run.error)
            assert run.error.errno == errno.EIO, (run.faults, run.error)
        return run

    done = in_turn(attempt, lambda call, run: Fail(errno.EIO), for_good=for_good, every_site=sound and not for_good)
    count("each call fails", done)


@pytest.mark.parametrize("look", [verify, diff])
def test_a_look_at_a_file_survives_signals_and_the_death_of_a_worker(
    stage: Stage, look: Callable[[Stage], bool], count: Count
) -> None:
    shutil.copy(stage.file, f"{stage.folder}/copy.mr")

    def attempt(decide: Decide) -> Run:
        run = stage.run(lambda: look(stage), decide)
        assert run.error is None, (run.faults, run.error)
        assert run.value is True
        return run

    done = in_turn(attempt, lambda call, run: Fail(errno.EINTR), names=RETRIED)
    done += in_turn(attempt, lambda call, run: Kill([call.pid]), by_worker=True, every_site=True)
    count("a process is killed at each call", done)
