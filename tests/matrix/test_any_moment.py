"""Processes of a save are killed, or stopped, wherever they are: whoever it is, at any call, at any time.

A guest of a real QEMU runs on, and its memory is what it was; there is no file, or a whole one; nobody is left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from support import faults
from support.examples import seed, thorough
from support.fault_matrix import RUNS_ON, Count, Took
from support.faults import Call, Forked, Kill, Run, Stop
from support.qemu import QemuProcess, Ram, boot_from, require_qemu
from support.qemu_saved import assert_as_written
from support.scarce import with_descriptors
from support.snapshots import unharmed
from support.stages import LEFT, WAYS, Stage, leaving_nothing
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram.cli.main import main
from parallel_fixedram.engine.capture.snapshot import processes
from parallel_fixedram.experiments.boot_sector import boot_image

REASON = faults.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

ROW = "a process is killed at any call of its own"
STOPPED = "a process is stopped at any call of its own"
AT_ANY_TIME = "a process is killed at a random time"
ONE_IN = {"running, behind a prefix": 1, "a snapshot": 3, "snapshot": 12, "compare": 8}
"""By way to save, of a process's calls but the first three, at how many it is killed; at all with `make soak`."""
RUNS_ON_SECONDS = 30.0
"""The promise is one second, a busy test machine gets more; the longest time is told."""
FIRST, END = 1 << 20, 8 << 20
"""Where the guest writes, bytes."""
MOMENTS = 2_000 if thorough() else 100
"""Of a save of a real guest, and as many of one that writes to a file system in memory."""
CAPTURES = ("snapshot", "compare", "stopped")
IMPATIENT = 0.5
"""Seconds that a process may be silent for."""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = tempfile.mkdtemp(prefix="moments-", dir="/dev/shm")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuProcess]:
    """A small guest: 100 rounds a second over 1..8 MiB."""
    require_qemu()
    path = tmp_path_factory.mktemp("small") / "image"
    path.write_bytes(boot_image(first=FIRST, end=END))
    with QemuProcess(*boot_from(path), ram=Ram(32 << 20)) as guest:
        guest.wait_serial("C")
        yield guest


def whichever(answer: Callable[[int], Kill | Stop], which: int, number: int) -> faults.Decide:
    """Do something to the so-many-th process that comes to be, the first one aside, at a call of its own."""

    def decide(call: Call, run: Run) -> Kill | Stop | None:
        if run.faults or run.workers()[which : which + 1] != (call.pid,):
            return None
        made[0] += 1
        return answer(call.pid) if made[0] > number else None

    made = [0]
    return decide


def first_and_one_in(share: int) -> Iterable[int]:
    """Numbers of calls: the first three, and of those behind them one in so many, from where the seed says."""
    if thorough():
        return itertools.count()
    return itertools.chain(range(3), itertools.count(3 + random.Random(f"{seed()} {share}").randrange(share), share))


def of_each(attempt: Callable[[int, int], Run], calls: Callable[[], Iterable[int]]) -> int:
    """Attempt with each process, at each of these calls that it makes; returns how many attempts hit one."""
    done = which = 0
    while True:
        hit = 0
        for number in calls():
            run = attempt(which, number)
            hit += bool(run.faults)
            if not run.faults:
                break
        if len(run.workers()) <= which:
            return done
        done, which = done + hit, which + 1


@pytest.mark.parametrize("way", ["running, behind a prefix", "a snapshot"])
def test_a_save_survives_any_process_of_its_own_but_the_first(folder: Path, way: str, count: Count) -> None:
    require_userfaultfd()
    stage = Stage(str(folder), WAYS[way])

    def attempt(which: int, number: int) -> Run:
        stage.before_save()
        run = stage.run(stage.save, whichever(lambda pid: Kill([pid]), which, number), every_call=True)
        assert run.error is None, (run.faults, run.error)
        stage.check_saved(run, published=True)
        return run

    count(ROW, of_each(attempt, partial(first_and_one_in, ONE_IN[way])))


@pytest.mark.parametrize("way", ["running, behind a prefix", "a snapshot"])
def test_a_save_goes_on_or_fails_where_a_process_of_its_own_is_stopped(folder: Path, way: str, count: Count) -> None:
    require_userfaultfd()
    impatient = {"max_stall": IMPATIENT, "stall_seconds": IMPATIENT}
    stage = Stage(str(folder), replace(WAYS[way], options={**WAYS[way].options, **impatient}))
    where = random.Random(f"{seed()} {way}")

    def attempt(which: int, number: int) -> Run:
        stage.before_save()
        decide = whichever(lambda pid: Stop([pid]), which, where.randrange(number))
        with mock.patch.multiple(processes, _READY_SECONDS=IMPATIENT, _SPILL_SECONDS=IMPATIENT):
            run = stage.run(stage.save, decide, every_call=True)
        stage.check_saved(run, published=run.error is None)
        return run

    count(STOPPED, of_each(attempt, lambda: (3, 20)))


def argv(guest: QemuProcess, file: Path, capture: str) -> list[str]:
    words = ["save", str(file), "--qmp", str(guest.monitor_path), "--capture", capture, "--overwrite"]
    return [*words, "--channels", "2", "--experimental-multifd", "--disks", "none"]


def check_there(file: Path, old: bytes, code: int) -> None:
    """The old file or a whole new one, which it is after exit 0; beside it only what `clean` finds."""
    assert file.exists()
    if code == 0 or file.read_bytes() != old:
        assert parallel_fixedram.verify(str(file)).ok
    parallel_fixedram.clean(str(file.parent), remove=True)
    assert os.listdir(file.parent) == [file.name]
    if code not in (0, -signal.SIGKILL):
        assert file.read_bytes() == old


@pytest.mark.qemu
@pytest.mark.parametrize("capture", ["snapshot", "compare"])
def test_a_guest_runs_on_whichever_process_is_killed_at_a_call(
    guest: QemuProcess, folder: Path, capture: str, count: Count, took: Took
) -> None:
    require_userfaultfd()
    file, old = folder / "vm.mr", b"old" * 9999

    def attempt(which: int, number: int) -> Run:
        file.write_bytes(old)
        with unharmed(guest):
            run = faults.run(
                lambda: main(argv(guest, file, capture)),
                under=str(folder),
                decide=whichever(lambda pid: Kill([pid]), which, number),
                every_call=True,
            )
            took(RUNS_ON, goes_on(guest))
        check_memory(guest)
        assert not run.hung, run.faults
        assert run.orphans == (), run.faults
        assert "Traceback" not in run.stderr, (run.faults, run.stderr)
        check_there(file, old, run.value)
        return run

    count(ROW, of_each(attempt, partial(first_and_one_in, ONE_IN[capture])))


def goes_on(guest: QemuProcess, limit: float = RUNS_ON_SECONDS) -> float:
    """Wait until the guest runs without being told to by us; returns how many seconds that took.

    Raises:
        TimeoutError: it does not.
    """
    since = time.monotonic()
    while guest.status() != "running":
        guest.wait_event("RESUME", max(since + limit - time.monotonic(), 0.0))  # it may be an earlier one
    return time.monotonic() - since


def check_memory(guest: QemuProcess) -> None:
    """A running guest's memory has what it wrote, and nothing else."""
    guest.stop()
    ram = guest.read_block()
    guest.cont()
    assert_as_written(ram, FIRST, END)


@pytest.mark.qemu
def test_a_guest_that_stands_still_and_memory_that_is_harmed_are_seen(guest: QemuProcess) -> None:
    guest.stop()
    guest.take_events()
    with pytest.raises(TimeoutError):
        goes_on(guest, 0.1)
    ram = guest.read_block()
    guest.cont()
    assert_as_written(ram, FIRST, END)
    for place in (FIRST, FIRST + 1, (FIRST + END) // 2 + 100, END - 4096 + 4):
        harmed = bytearray(ram)
        harmed[place] ^= 2
        with pytest.raises(AssertionError):
            assert_as_written(harmed, FIRST, END)


@pytest.mark.qemu
def test_a_guest_runs_on_whoever_is_killed_at_any_time(
    guest: QemuProcess, folder: Path, count: Count, took: Took
) -> None:
    """From the end of the command on, who is left has to let it go on."""
    require_userfaultfd()
    file, old, where = folder / "vm.mr", b"old" * 9999, random.Random(f"{seed()} at any time")
    longest = 0.0
    for number in range(MOMENTS):
        capture = CAPTURES[number % len(CAPTURES)]
        file.write_bytes(old)
        with unharmed(guest), Forked(*argv(guest, file, capture)) as command:
            started = time.monotonic()
            until_end(command, where.uniform(0, longest or 1.0))
            kill_some(command, where)
            code = command.finish().code
            took(RUNS_ON, goes_on(guest))
            longest = max(longest, time.monotonic() - started)
            assert command.left() == []
        check_memory(guest)
        check_there(file, old, code)
    count(AT_ANY_TIME, MOMENTS)


def until_end(command: Forked, seconds: float) -> None:
    pidfd = os.pidfd_open(command.pid)
    select.select([pidfd], [], [], seconds)
    os.close(pidfd)


def kill_some(command: Forked, where: random.Random) -> None:
    """The command, a process of its, or its whole group, to which those do not belong that look after the guest."""
    who = where.choice(["the command", "one", "the group"])
    with contextlib.suppress(ProcessLookupError):
        if who == "the group":
            os.killpg(command.pid, signal.SIGKILL)
        else:
            one = where.choice([*command.children(), command.pid])
            os.kill(command.pid if who == "the command" else one, signal.SIGKILL)


def test_there_is_the_old_file_or_the_new_one_whoever_is_killed_after_any_number_of_calls(
    folder: Path, count: Count
) -> None:
    where = random.Random(f"{seed()} after any number of calls")
    stages = {}
    for way in WAYS:
        (folder / str(len(stages))).mkdir()
        stages[way] = Stage(str(folder / str(len(stages))), WAYS[way])
    for number in range(MOMENTS):
        stage = stages[list(WAYS)[number % len(WAYS)]]
        kills = kill_one(where.choice(["the first", "the one in the call", "all"]), where.randrange(160))
        stage.before_save()
        run = stage.run(stage.save, kills)
        there = stage.file.read_bytes() if stage.file.exists() else b""
        assert there in (stage.way.old, stage.new), run.faults
        assert there == stage.new or run.exit_code == -signal.SIGKILL, run.faults
        if number % 10 == 0:
            stage.check_next_save()
    count(AT_ANY_TIME, MOMENTS)


def kill_one(who: str, number: int) -> faults.Decide:
    def decide(call: Call, run: Run) -> Kill | None:
        if run.faults or call.number < number:
            return None
        return Kill({"the first": [run.root], "the one in the call": [call.pid], "all": list(run.pidfds)}[who])

    return decide


@pytest.mark.qemu
@pytest.mark.parametrize("capture", ["snapshot", "compare"])
def test_a_guest_runs_on_where_the_descriptors_of_its_save_run_out_at_any_moment(
    guest: QemuProcess, folder: Path, capture: str, count: Count
) -> None:
    require_userfaultfd()
    file, old = folder / "vm.mr", b"old" * 9999
    for spare in itertools.count():
        file.write_bytes(old)
        save = partial(with_descriptors, spare, partial(main, argv(guest, file, capture)))
        with unharmed(guest):
            run = faults.run(partial(leaving_nothing, save), under="/nowhere", decide=lambda call, run: None)
            goes_on(guest)
        check_memory(guest)
        assert not run.hung, spare
        assert run.error is None, (spare, run.error)
        assert run.value in (0, 4, 5), (spare, run.stderr)
        assert not any(word in run.stderr for word in ("Traceback", "unexpected", LEFT)), (spare, run.stderr)
        check_there(file, old, run.value)
        if run.value == 0:
            break
    count("each call fails", spare)
