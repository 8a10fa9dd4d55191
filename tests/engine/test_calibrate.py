"""What writes cost in a folder: measured there once, kept for a while, and nothing left behind."""

import errno
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.cli import tmpfs
from support.leftovers import children
from support.models import CALLS_COST, cost

from parallel_fixedram.core.bitmap import Bits, Runs
from parallel_fixedram.core.choice import CANDIDATES
from parallel_fixedram.core.cost import ASSUMED, DeviceModel
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.staging import Staging
from parallel_fixedram.engine.tuning import calibrate, calibrate_computing, calibrate_writing
from parallel_fixedram.engine.tuning.calibrate import KEPT_SECONDS, WORTH_MEASURING, device_model, model_from
from parallel_fixedram.engine.tuning.calibrate_writing import TRIALS, Pattern, WriteTrials
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.processes import forked

ENOUGH = WORTH_MEASURING
MEASURED = DeviceModel.from_json(CALLS_COST.to_json(), "measured")
CACHED = DeviceModel.from_json(CALLS_COST.to_json(), "cached")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which results are kept; there is none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parallel-fixedram" / "devices.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders in which is measured from now on, which takes no time."""
    asked: list[str] = []

    def measure(folder: str) -> DeviceModel:
        asked.append(folder)
        return MEASURED

    monkeypatch.setattr(calibrate, "measure", measure)
    return asked


@pytest.mark.slow
def test_it_is_really_measured_and_leaves_nothing_behind(folder: Path) -> None:
    before = folder.stat().st_mtime_ns
    found = device_model(str(folder), ENOUGH)
    assert found.source == "measured"
    assert set(found.buffered) == set(CANDIDATES)
    assert set(found.direct) in ({*CANDIDATES}, set())
    for each in (*found.buffered.values(), *found.direct.values(), found.stable, found.flush):
        assert each.byte > 0
        assert each.call >= 0
        assert 0 < each.seconds(1, 1 << 20) < 10
    seconds = found.sync, found.start, found.reserve, found.scan_byte, found.digest_page
    assert all(0 < each < 10 for each in seconds)
    assert found.flush.seconds(1, 1 << 20) > 0
    assert os.listdir(folder) == []
    assert folder.stat().st_mtime_ns == before  # a file without a name was made there
    again = device_model(str(folder), ENOUGH)
    assert again == DeviceModel.from_json(found.to_json(), "cached")


def test_a_result_is_used_again_until_a_fresh_one_is_asked_for(folder: Path, measured: list[str]) -> None:
    assert device_model(str(folder), ENOUGH) == MEASURED
    assert device_model(str(folder), ENOUGH) == CACHED
    assert device_model(str(folder), 0) == CACHED, "what is known is used for little, too"
    assert len(measured) == 1
    assert device_model(str(folder), 0, fresh=True) == MEASURED
    assert measured == [str(folder)] * 2
    assert device_model(str(folder), ENOUGH) == CACHED


def test_a_result_holds_for_the_whole_file_system_and_no_other(
    folder: Path, tmp_path: Path, measured: list[str]
) -> None:
    device_model(str(folder), ENOUGH)
    assert device_model(str(tmp_path), ENOUGH) == CACHED
    with tmpfs(tmp_path / "small", "size=1m") as small:
        assert device_model(str(small), ENOUGH) == MEASURED
        assert device_model(str(small), ENOUGH) == CACHED
        assert device_model(str(folder), ENOUGH) == CACHED
    assert len(measured) == 2


def test_a_result_does_not_hold_for_another_kernel(folder: Path, measured: list[str], kept: Path) -> None:
    device_model(str(folder), ENOUGH)
    text = kept.read_text()
    assert os.uname().release in text
    kept.write_text(text.replace(os.uname().release, "7.0"))
    assert device_model(str(folder), ENOUGH) == MEASURED


def test_what_is_too_little_to_measure_for_is_not_measured(folder: Path, measured: list[str], kept: Path) -> None:
    assert device_model(str(folder), WORTH_MEASURING - 1) is ASSUMED
    assert measured == []
    assert not kept.exists()
    assert device_model(str(folder), WORTH_MEASURING) == MEASURED


@pytest.mark.parametrize("age", [KEPT_SECONDS + 1, -60])
def test_a_result_that_is_too_old_or_from_the_future_is_not_used(
    folder: Path, measured: list[str], kept: Path, age: float
) -> None:
    device_model(str(folder), ENOUGH)
    data = json.loads(kept.read_text())
    ((key, result),) = data.items()
    assert abs(result["measured"] - time.time()) < 60
    kept.write_text(json.dumps({key: {**result, "measured": time.time() - age}}))
    assert device_model(str(folder), ENOUGH) == MEASURED
    assert device_model(str(folder), ENOUGH) == CACHED
    assert len(measured) == 2


def rewrite(kept: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    ((key, result),) = json.loads(kept.read_text()).items()
    kept.write_text(json.dumps({key: change(result)}))


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda _: None,
    "a list": lambda _: [1],
    "a number": lambda _: 7,
    "no time": lambda result: {"model": result["model"]},
    "a time that is none": lambda result: {**result, "measured": "now"},
    "a time beyond all numbers": lambda result: {**result, "measured": 10**400},
    "no model": lambda result: {"measured": result["measured"]},
    "a model that is none": lambda result: {**result, "model": []},
    "another version": lambda result: {**result, "version": result["version"] - 1},
    "no version": lambda result: {key: value for key, value in result.items() if key != "version"},
    "no flush": lambda result: {
        **result,
        "model": {key: value for key, value in result["model"].items() if key != "flush"},
    },
    "half a model": lambda result: {**result, "model": {"direct": {}}},
    "costs in a list": lambda result: {**result, "model": {**result["model"], "direct": [1]}},
    "no buffered costs": lambda result: {**result, "model": {**result["model"], "buffered": {}}},
    "bytes for nothing": lambda result: {**result, "model": {**result["model"], "stable": {"call": 1, "byte": 0}}},
    "a cost in words": lambda result: {**result, "model": {**result["model"], "stable": {"call": "x", "byte": 1}}},
    "a cost beyond all numbers": lambda result: {**result, "model": {**result["model"], "digest_page": 10**400}},
    "no number at all": lambda result: {**result, "model": {**result["model"], "scan_byte": float("nan")}},
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_result_is_measured_again(
    folder: Path, measured: list[str], kept: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    device_model(str(folder), ENOUGH)
    rewrite(kept, change)
    assert device_model(str(folder), ENOUGH) == MEASURED
    assert device_model(str(folder), ENOUGH) == CACHED
    assert len(measured) == 2


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_file_is_measured_again(folder: Path, measured: list[str], kept: Path, junk: bytes) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(junk)
    assert device_model(str(folder), ENOUGH) == MEASURED
    assert device_model(str(folder), ENOUGH) == CACHED


def test_results_of_other_file_systems_are_kept(folder: Path, measured: list[str], kept: Path) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"other": {"measured": 0, "model": {}}}))
    device_model(str(folder), ENOUGH)
    assert set(json.loads(kept.read_text())) > {"other"}


def test_where_nothing_can_be_kept_it_is_measured_each_time(
    folder: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    for _ in range(2):
        assert device_model(str(folder), ENOUGH) == MEASURED
    assert len(measured) == 2


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR, errno.EACCES, errno.EROFS])
def test_where_no_file_without_a_name_can_be_made_it_is_assumed(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(code, "no")
        return real(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert device_model(str(folder), ENOUGH) is ASSUMED
    assert not kept.exists()
    assert os.listdir(folder) == []


def test_a_folder_that_is_not_there_is_assumed_about(folder: Path) -> None:
    assert device_model(str(folder / "missing"), ENOUGH) is ASSUMED


def test_a_file_system_without_space_is_assumed_about_and_gets_all_of_it_back(tmp_path: Path, kept: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as small:
        assert device_model(str(small), ENOUGH) is ASSUMED
        assert os.listdir(small) == []
        status = os.statvfs(small)
        assert status.f_bfree == status.f_blocks
    assert not kept.exists()


@pytest.mark.slow
def test_where_direct_io_is_refused_only_the_page_cache_is_measured(
    folder: Path, refuse_direct_io: Callable[[], None]
) -> None:
    refuse_direct_io()
    found = calibrate.measure(str(folder))
    assert found.direct == {}
    assert set(found.buffered) == set(CANDIDATES)


Took = tuple[float, float, float]


class KnownTrials(WriteTrials):
    """Trials of a device whose cost is known; nothing is written.

    Args:
        took: seconds of writing, of the sync, and of computing meanwhile, by job, channels and pattern.
        sync: seconds of a sync after a single page.

    Attributes:
        made: the trials, in their order.
    """

    def __init__(self, took: Callable[[int, int, Pattern], Took], sync: float = 0.001) -> None:
        self._took, self._sync, self._middle = took, sync, {}
        self.made: list[tuple[int, int, Pattern]] = []

    def write(self, job: int, channels: int, pattern: Pattern) -> Took:
        self.made.append((job, channels, pattern))
        return self._took(job, channels, pattern)

    def empty_sync(self) -> float:
        return self._sync

    def reserve(self) -> float:
        return 0.0


def model_of(trials: WriteTrials) -> DeviceModel:
    computing = calibrate_computing.ComputingTrials(np.ones((4, 512), np.uint64))
    return model_from(trials, computing, direct=True, start=0.0)


def test_what_the_sync_after_direct_writes_takes_is_found_out() -> None:
    """By trials of a device whose cache is volatile."""
    write, flush, empty, each_window = cost(20, 0.5), cost(7, 1.5), 0.004, 0.0003
    after_direct, after_buffered = 0.009, 0.006

    def known(job: int, channels: int, pattern: Pattern) -> Took:
        window = calibrate_writing.JOB_WINDOW_PAGES[job]
        calls = windows = TRIALS[pattern].windows
        size = windows * window * 4096
        if stride := TRIALS[pattern].stride:
            calls = windows * window // stride
            size = calls * 4096
        seconds = write.seconds(calls, size) + windows * each_window / min(channels, processors)
        if pattern == Pattern.COMPUTING:
            return seconds + 0.75 * 0.001, empty, 0.001  # a quarter of the computing is hidden
        alone = after_direct if job == calibrate_writing.DIRECT else after_buffered
        return seconds, alone + flush.seconds(calls, size), 0.0

    processors = len(os.sched_getaffinity(0))
    found = model_of(KnownTrials(known, empty))
    for channels in CANDIDATES:
        assert found.direct[channels].call == pytest.approx(20e-6)
        assert found.direct[channels].byte == pytest.approx(0.5e-9)
    assert (found.flush.call, found.flush.byte) == (pytest.approx(7e-6), pytest.approx(1.5e-9))
    assert (found.stable.call, found.stable.byte) == (pytest.approx(27e-6), pytest.approx(2.0e-9))
    assert (found.direct_window, found.buffered_window) == (pytest.approx(0.0003), pytest.approx(0.0003))
    assert found.sync == empty
    assert (found.direct_sync, found.buffered_sync) == (pytest.approx(after_direct), pytest.approx(after_buffered))
    assert found.overlap == pytest.approx(0.25)


def test_a_device_that_is_quicker_with_much_than_with_little_has_no_cost_below_nothing() -> None:
    took = {Pattern.SMALL: 0.3, Pattern.LARGE: 0.2, Pattern.LONG: 0.1}
    found = model_of(KnownTrials(lambda job, channels, pattern: (0.001, took.get(pattern, 0.001), 0.001)))
    assert min(found.flush.byte, found.stable.byte) > 0
    assert min(found.flush.call, found.direct_sync, found.stable.call, found.buffered_sync) >= 0


def test_a_trial_is_made_once_however_many_figures_follow_from_it() -> None:
    """It is repeated as often as it says, because here it takes no time."""
    trials = KnownTrials(lambda job, channels, pattern: (1e-3, 1e-3, 1e-3))
    model_of(trials)
    made = Counter(trials.made)
    assert all(times <= TRIALS[pattern].repeats for (_, _, pattern), times in made.items())
    for job in (calibrate_writing.BUFFERED, calibrate_writing.DIRECT):
        assert {(job, c, each) for c in CANDIDATES for each in (Pattern.SMALL, Pattern.LARGE)} <= set(made)


def test_looking_at_pages_is_the_mean_of_samples_and_their_digest_is_no_part_of_it() -> None:
    """64 windows of 4 pages and 8 of 256: a window takes 1 ms, a page 10 us, 4 us of it for its digest."""
    speeds = iter((9.0, 1.0, 3.0))  # what is measured first counts for nothing
    now = [0.0]

    class Known(calibrate_computing.ComputingTrials):
        def look(self, windows: int, pages: int) -> float:
            if pages > 4:
                now[0] = next(speeds)
            return now[0] * (windows * 1e-3 + windows * pages * 10e-6)

        def page(self, work: Callable[[Bits], object]) -> float:
            return now[0] * 4e-6

    trials = Known(np.ones((4, 512), np.uint64))
    trials.sample()
    trials.sample()
    found = trials.result()
    assert found.window == pytest.approx(2 * 1e-3)
    assert found.scan_byte == pytest.approx(2 * 6e-6 / 4096)
    assert (found.digest_page, found.hash_page) == (pytest.approx(2 * 4e-6), pytest.approx(2 * 4e-6))


@pytest.mark.parametrize("staged", [True, False])
def test_a_trial_writes_what_its_pattern_says_and_where_a_save_copies_pages_it_does(
    tmp_path: Path, staged: bool
) -> None:
    written_from: list[int] = []

    class Noting(FileChannel):
        def write_runs(self, offset: int, pages: Pages, runs: Runs, readable: Bits) -> None:
            written_from.append(pages.ctypes.data)
            super().write_runs(offset, pages, runs, readable)

    pages = np.arange(512 * 512, dtype=np.uint64).reshape(512, 512) + np.uint64(1)
    with open(tmp_path / "FILE", "w+b") as file:
        channel = Noting(file.fileno(), "FILE")
        staging = Staging(lambda: channel, 4096, window_pages=512, slots=2) if staged else None
        writer = calibrate_writing.Writer(channel, pages, 512, staging)
        writer.open()
        writer.run(Shard(Pattern.SPARSE, 0, 2 * 512 // 64, 0))
        found = np.fromfile(file.name, np.uint64).reshape(-1, 512)
    stride = TRIALS[Pattern.SPARSE].stride
    assert stride
    for page, contents in enumerate(found):
        assert (contents == (pages[page % 512] if page % stride == 0 else 0)).all()
    assert len(found) == 2 * 512 - stride + 1
    assert (pages.ctypes.data in written_from) != staged


@pytest.mark.slow
def test_half_a_gigabyte_is_room_enough(tmp_path: Path) -> None:
    """However fast the device is, and so often everything is written."""
    with tmpfs(tmp_path / "memory", "size=512m") as memory:
        assert device_model(str(memory), ENOUGH).source == "measured"


@pytest.mark.slow
def test_nothing_is_reserved_where_files_are_memory(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", "size=1g") as memory:
        assert calibrate.measure(str(memory)).reserve == 0.0


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_leaves_no_file_and_no_worker(folder: Path, kept: Path, signum: int) -> None:
    """It is held where its workers are up and its file is open."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

            def hold(*_: object, **__: object) -> None:
                workers = [child.pid for child in psutil.Process().children()]
                os.write(tell, json.dumps(workers).encode())
                signal.pause()

            WriteTrials.middle = hold  # type: ignore[method-assign]
            device_model(str(folder), ENOUGH)
        finally:
            os._exit(1)
    os.close(tell)
    workers = json.loads(os.read(ready, 1000))
    os.close(ready)
    with ExitStack() as stack:
        pidfds = [os.pidfd_open(worker) for worker in workers]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        assert len(workers) == max(CANDIDATES)
        os.kill(pid, signum)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signum
        assert all(forked.has_ended(pidfd, 30) for pidfd in pidfds)
    assert os.listdir(folder) == []
    assert not kept.exists()


def test_an_interrupt_ends_the_workers_and_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = children()
    monkeypatch.setattr(WriteTrials, "middle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        device_model(str(folder), ENOUGH)
    assert children() == before
    assert os.listdir(folder) == []
