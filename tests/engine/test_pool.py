"""Workers die, hang and fail; shards get done all the same, or the pool says why not."""

import errno
import logging
import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from support.channels import DeadlyChannel, HookChannel, SharedCounter, Through
from support.pictures import PAGE, saved_picture
from support.saving import save, several
from support.sources import ScriptedGuest

from parallel_fixedram.core.errors import FormatError, HostError, WorkerError
from parallel_fixedram.core.save_options import DirectIO, SaveOptions
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.engine.workers.messages import BadPages, ShardDone, Tally
from parallel_fixedram.engine.workers.pool import Parts, WorkerPool
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.verify import verify

SHARDS = [Shard(0, index, 1, 64) for index in range(20)]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 30])
def test_every_worker_has_a_part_of_its_own_and_that_in_every_run(workers: int) -> None:
    def part(parts: Parts, worker: int) -> list[Shard]:
        return list(iter(lambda: parts.own(worker), None))

    first, again = (Parts(SHARDS, workers) for _ in range(2))
    found = [part(first, worker) for worker in range(workers)]
    assert found == [part(again, worker) for worker in reversed(range(workers))][::-1]
    assert [shard for each in found for shard in each] == SHARDS
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert [first.other(worker) for worker in range(workers)] == [None] * workers


def test_who_has_done_its_own_part_takes_from_the_end_of_the_longest() -> None:
    parts = Parts(SHARDS, 2)
    for _ in range(10):
        parts.own(0)
    assert [parts.other(0) for _ in range(4)] == SHARDS[:-5:-1]
    assert [parts.own(1) for _ in range(7)] == [*SHARDS[10:16], None]


def test_nobody_takes_from_another_one_who_waits_for_work_too() -> None:
    job = CountingJob()
    with WorkerPool([job], 3) as pool:
        pool.run(0, SHARDS[:3])
        assert [worker.shards for worker in pool.workers] == [1, 1, 1]


def test_parts_have_about_as_many_pages_however_different_the_shards_are() -> None:
    uneven = [Shard(0, 0, 1, 1000), *(Shard(0, word, 1, 10) for word in range(1, 101))]
    assert Parts(uneven, 2).own(1) == uneven[1]


def test_a_shard_that_was_lost_is_the_next_one() -> None:
    parts = Parts(SHARDS, 2)
    lost = parts.own(0)
    assert lost
    parts.again(0, lost)
    assert parts.own(0) == lost


class CountingJob:
    """Counts in shared memory how often each shard was begun and done; ``act`` is called in between."""

    def __init__(
        self, act: Callable[[Shard], None] = lambda _: None, opening: Callable[[], None] = lambda: None
    ) -> None:
        self.begun, self.done = shared_words(len(SHARDS)), shared_words(len(SHARDS))
        self._act = act
        self._opening = opening

    def open(self) -> None:
        self._opening()

    def run(self, shard: Shard) -> Tally:
        self.begun[shard.first_word] += 1
        self._act(shard)
        self.done[shard.first_word] += 1
        return Tally(written_pages=shard.pages, findings=[BadPages(0, shard.first_word, 1)])


def kill_self(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)


@pytest.fixture
def counter() -> Iterator[Callable[[int], SharedCounter]]:
    made: list[SharedCounter] = []

    def make(limit: int) -> SharedCounter:
        made.append(SharedCounter(limit))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("workers", [1, 3, 30])
def test_every_shard_is_done_once_and_the_tallies_add_up(workers: int) -> None:
    job, acknowledged, by = CountingJob(), [], []

    def note(message: ShardDone, worker: int) -> None:
        acknowledged.append(message)
        by.append(worker)

    with WorkerPool([job], workers) as pool:
        tally = pool.run(0, SHARDS, note)
        assert [worker.index for worker in pool.workers] == list(range(workers))
        assert [worker.shards for worker in pool.workers] == [by.count(number) for number in range(workers)]
        assert len(by) == len(SHARDS)
        assert sum(worker.tally.written_pages for worker in pool.workers) == tally.written_pages
    assert set(job.done.tolist()) == {1}
    assert tally.written_pages == 64 * len(SHARDS)
    assert sorted(tally.findings) == [BadPages(0, index, 1) for index in range(len(SHARDS))]
    assert sorted(message.shard.first_word for message in acknowledged) == list(range(len(SHARDS)))


def test_a_shard_begins_and_ends_on_the_clock_of_the_coordinator() -> None:
    times: list[tuple[float, float]] = []
    with WorkerPool([CountingJob()], 3) as pool:
        before = time.perf_counter()
        pool.run(0, SHARDS, lambda done, _: times.append((done.started, done.seconds)))
        after = time.perf_counter()
    assert all(before <= started <= started + seconds <= after for started, seconds in times)


def test_no_shards_are_done_at_once() -> None:
    with WorkerPool([CountingJob()], 2) as pool:
        assert pool.run(0, []) == Tally()


def test_a_pool_does_several_jobs_one_after_the_other() -> None:
    first, second = CountingJob(), CountingJob()
    with WorkerPool([first, second], 2) as pool:
        pool.run(0, SHARDS[:5])
        pool.run(1, SHARDS[5:])
    assert first.done.tolist() == [1] * 5 + [0] * 15
    assert second.done.tolist() == [0] * 5 + [1] * 15


def test_a_shard_is_in_flight_once_until_it_is_acknowledged() -> None:
    """Invariants 1 and 2: run() returns when every shard is acknowledged, and none is begun twice."""
    job, in_flight = CountingJob(), []
    with WorkerPool([job], 4) as pool:
        for number in range(3):

            def check(message: ShardDone, _worker: int, number: int = number) -> None:
                in_flight.append(int(job.begun[message.shard.first_word]) - number)

            pool.run(0, SHARDS, check)
            assert set(job.begun.tolist()) == set(job.done.tolist()) == {number + 1}
    assert set(in_flight) == {1}


def test_the_shards_of_a_killed_worker_go_to_the_others(counter: Callable[[int], SharedCounter]) -> None:
    deaths = counter(3)
    job = CountingJob(lambda _: kill_self() if deaths.take() else None)
    with WorkerPool([job], 4) as pool:
        tally = pool.run(0, SHARDS)
        assert [worker.alive for worker in pool.workers].count(True) == 1
    assert set(job.done.tolist()) == {1}
    assert job.begun.sum() == len(SHARDS) + 3
    assert tally.written_pages == 64 * len(SHARDS)


def test_when_no_worker_is_left_the_pool_says_how_the_last_one_died() -> None:
    with (
        WorkerPool([CountingJob(lambda _: kill_self())], 3) as pool,
        pytest.raises(WorkerError, match="no worker is left, the last one was killed by SIGKILL"),
    ):
        pool.run(0, SHARDS)


def test_a_worker_that_dies_while_it_has_nothing_to_do_is_not_missed() -> None:
    job = CountingJob()
    with WorkerPool([job], 3) as pool:
        os.kill(pool.workers[1].pid, signal.SIGKILL)
        pool.run(0, SHARDS)
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        pool.run(0, SHARDS)
    assert set(job.done.tolist()) == {2}


def test_workers_that_die_before_they_are_ready_are_not_waited_for(counter: Callable[[int], SharedCounter]) -> None:
    deaths = counter(2)
    job = CountingJob(opening=lambda: kill_self() if deaths.take() else None)
    with WorkerPool([job], 3) as pool:
        pool.run(0, SHARDS)
    assert set(job.done.tolist()) == {1}
    with pytest.raises(WorkerError, match="no worker is left"), WorkerPool([CountingJob(opening=kill_self)], 3):
        pass


def test_a_dead_worker_is_noticed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The promise is 100 ms; the bound here is generous, for a machine that has other things to do."""
    moments = shared_words(2)

    def die_or_redo(shard: Shard) -> None:
        if moments[0]:
            moments[1] = time.monotonic_ns()
        elif shard.first_word == 0:
            moments[0] = time.monotonic_ns()
            kill_self()

    with caplog.at_level(logging.WARNING), WorkerPool([CountingJob(die_or_redo)], 2) as pool:
        pool.run(0, SHARDS[:1])
    noticed_ms = int(moments[1] - moments[0]) / 1e6
    print(f"from kill -9 to the shard in another worker: {noticed_ms:.2f} ms")
    assert 0 < noticed_ms < 2000
    assert "was killed by SIGKILL; its shard goes to another one" in caplog.text


@pytest.mark.parametrize("workers", [2, 4])
def test_a_stalled_worker_is_killed_and_its_shard_done_again(
    counter: Callable[[int], SharedCounter], caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    stalls = counter(1)
    job = CountingJob(lambda _: kill_self(signal.SIGSTOP) if stalls.take() else None)
    with WorkerPool([job], workers, stall_seconds=0.6) as pool:
        pool.run(0, SHARDS)
    assert set(job.done.tolist()) == {1}
    assert "which has stalled" in caplog.text


def test_when_every_worker_stalls_the_pool_gives_up() -> None:
    job = CountingJob(lambda _: kill_self(signal.SIGSTOP))
    with (
        WorkerPool([job], 2, stall_seconds=0.2) as pool,
        pytest.raises(WorkerError, match="no worker is left, the last one was killed by SIGKILL"),
    ):
        pool.run(0, SHARDS)


def test_a_worker_that_stalls_while_it_opens_its_jobs_is_killed(counter: Callable[[int], SharedCounter]) -> None:
    stalls = counter(1)
    job = CountingJob(opening=lambda: kill_self(signal.SIGSTOP) if stalls.take() else None)
    with WorkerPool([job], 2, stall_seconds=0.6) as pool:
        pool.run(0, SHARDS)
    assert set(job.done.tolist()) == {1}


@pytest.mark.slow
def test_a_worker_that_maps_memory_for_long_while_it_opens_its_jobs_is_not_stalled() -> None:
    def map_slowly() -> None:
        seconds, length = 1.5, 64 << 20
        with mmap.mmap(-1, length) as memory:
            started = time.monotonic()
            while (passed := time.monotonic() - started) < seconds:
                memory[int(passed / seconds * length)] = 1

    job = CountingJob(opening=map_slowly)
    with WorkerPool([job], 1, stall_seconds=0.3) as pool:
        pool.run(0, SHARDS)
    assert set(job.done.tolist()) == {1}


def fail() -> None:
    raise HostError("cannot do it", errno=errno.ENOSPC, hint="make room")


def test_an_expected_error_in_a_worker_is_raised_whole() -> None:
    def reject(_: Shard) -> None:
        raise FormatError("odd", offset=0x123)

    with WorkerPool([CountingJob(lambda _: fail())], 3) as pool, pytest.raises(HostError) as caught:
        pool.run(0, SHARDS)
    assert str(caught.value) == "cannot do it: no space left on device"
    assert (caught.value.errno, caught.value.hint) == (errno.ENOSPC, "make room")
    with WorkerPool([CountingJob(reject)], 1) as pool, pytest.raises(FormatError, match=r"^at 0x123: odd$") as odd:
        pool.run(0, SHARDS)
    assert odd.value.offset == 0x123
    with pytest.raises(HostError, match="cannot do it"), WorkerPool([CountingJob(opening=fail)], 3):
        pass


def test_an_unexpected_error_in_a_worker_ends_the_run_cleanly(capfd: pytest.CaptureFixture[str]) -> None:
    def stumble(_: Shard) -> None:
        raise ZeroDivisionError("oops")

    with (
        WorkerPool([CountingJob(stumble)], 2) as pool,
        pytest.raises(WorkerError, match="a worker failed: unexpected ZeroDivisionError: oops"),
    ):
        pool.run(0, SHARDS)
    assert capfd.readouterr().err == ""


def test_an_error_in_the_coordinator_ends_the_workers() -> None:
    pool = WorkerPool([CountingJob()], 3)
    with pytest.raises(ZeroDivisionError), pool:
        pool.run(0, SHARDS, lambda *_: 1 // 0)
    assert not any(psutil.pid_exists(worker.pid) for worker in pool.workers)


def test_workers_ignore_the_interrupt_that_is_meant_for_the_coordinator() -> None:
    job = CountingJob()
    with WorkerPool([job], 2) as pool:
        for worker in pool.workers:
            os.kill(worker.pid, signal.SIGINT)
        pool.run(0, SHARDS)
        assert all(worker.alive for worker in pool.workers)


# --- the same, seen from a save

RAM = "A" * 600 + "0" * 40 + "B" * 600


MIDDLE = (1 << 20) + 700 * PAGE


def options(channels: int, stall_seconds: float = 30.0) -> SaveOptions:
    return several(channels=channels, direct_io=DirectIO.ON, stall_seconds=stall_seconds)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(("signum", "deaths"), [(signal.SIGKILL, 1), (signal.SIGKILL, 3), (signal.SIGSTOP, 1)])
def test_a_save_survives_workers_that_die_or_hang_in_the_middle_of_a_write(
    target: str, through: Through, signum: int, deaths: int, running: bool
) -> None:
    """Invariant 3: the pages of a lost shard are written by another worker."""
    made = through(lambda inner: DeadlyChannel(inner, MIDDLE, signum=signum, times=deaths))
    with ScriptedGuest({"ram": RAM}, running=running) as guest:
        save(guest, target, options(4, stall_seconds=0.8))
    assert saved_picture(target) == RAM.replace("0", "-")
    with Image(target) as image:
        assert verify(image).ok
    assert made[0].died


@pytest.mark.parametrize("running", [False, True])
def test_a_save_whose_workers_are_all_dead_fails_cleanly_and_the_guest_goes_on(
    target: str, through: Through, running: bool
) -> None:
    through(lambda inner: DeadlyChannel(inner, MIDDLE, times=100))
    with ScriptedGuest({"ram": RAM}, running=running) as guest:
        with pytest.raises(WorkerError, match="no worker is left"):
            save(guest, target, options(3))
        assert guest.running == running
        assert guest.calls == ([] if running else ["pause", "device_state", "resume"])
    assert os.listdir(os.path.dirname(target)) == []


def test_workers_die_with_the_coordinator_and_what_it_left_is_replaced(target: str, through: Through) -> None:
    read_end, write_end = os.pipe()

    def report_and_hang() -> None:
        os.write(write_end, b"x")
        signal.pause()

    through(lambda inner: HookChannel(inner, MIDDLE, report_and_hang))
    with ScriptedGuest({"ram": RAM}) as guest:
        coordinator = os.fork()
        if coordinator == 0:
            try:
                save(guest, target, options(3))
            finally:
                os._exit(1)
        os.read(read_end, 1)  # one of them is in the middle of a write now
        workers = [os.pidfd_open(child.pid) for child in psutil.Process(coordinator).children()]
        assert len(workers) == 3
        killed = time.monotonic()
        os.kill(coordinator, signal.SIGKILL)
        for worker in workers:
            ended, _, _ = select.select([worker], [], [], 10)
            assert ended
        print(f"from the coordinator's death to that of the last worker: {(time.monotonic() - killed) * 1000:.2f} ms")
        os.waitpid(coordinator, 0)
        for fd in (*workers, read_end, write_end):
            os.close(fd)
        assert os.listdir(os.path.dirname(target)) == [".FILE.part"]
        through(lambda inner: inner)
        save(guest, target, options(3))
    assert os.listdir(os.path.dirname(target)) == ["FILE"]
    assert saved_picture(target) == RAM.replace("0", "-")
