"""The death of a save of a running guest at every step: the guest goes on, and nothing is in the way of the next save.

The promise to the guest has a bound, one second, so it is one that tests measure.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import faults
from support.cli import Result, done, part_of, refused
from support.examples import in_turn, thorough, unless_thorough
from support.fake_qmp import line
from support.fault_matrix import RUNS_ON, Took
from support.faults import Call, Forked, Kill, Run, before, behind
from support.qemu import QemuProcess, Ram, boot_from

import parallel_fixedram
from parallel_fixedram.cli.main import main
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.pages.changed_job import ChangedJob
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.publish import PendingFile
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.image import ending
from parallel_fixedram.image.draft import Draft
from parallel_fixedram.machines.qemu.device_state import DeviceState
from parallel_fixedram.machines.qemu.monitor import Monitor

pytestmark = pytest.mark.usefixtures("nothing_is_left")

MIB = 1 << 20
PATIENCE_SECONDS = 60.0
"""For a guest that has to go on by itself: the promise is a second, a busy test machine gets more."""

STATE = "xen-save-devices-state"
STOPPED = behind(Monitor, "execute", "stop")
BEFORE = {
    "connected": behind(Monitor, "__init__"),
    "memory for the device state handed over": behind(DeviceState, "__enter__"),
    "RAM reached": before(Guardian, "__enter__"),
    "guardian there": behind(Guardian, "__enter__"),
    "file made": before(PendingFile, "set_size"),
    "file sized": behind(PendingFile, "set_size"),
    "first pass begun": before(RoundJob, "run"),
    "first pass done": behind(RoundJob, "run"),
    "workers up": before(Pause, "__enter__"),
    "armed": behind(Guardian, "arm"),
}
"""Steps at which the guest has not been stopped yet."""
PAUSED = {
    "stopped": STOPPED,
    "pages being written": before(ChangedJob, "run", since=STOPPED),
    "device state asked for": before(Monitor, "execute", STATE),
    "device state there": behind(Monitor, "execute", STATE),
    "about to let it go on": before(Monitor, "execute", "cont"),
}
AFTER = {
    "let go on": behind(Monitor, "execute", "cont"),
    "file being finished": before(Draft, "finish"),
    "trailer written": behind(ending, "write_footer"),
    "about to sync": before(FileChannel, "sync"),
    "synced": behind(FileChannel, "sync"),
    "about to publish": before(PendingFile, "publish"),
}
RENAMED = {"renamed": behind(linux, "rename_new"), "folder synced": behind(PendingFile, "sync_folder")}
STEPS = BEFORE | PAUSED | AFTER | RENAMED
STILL = STEPS | {"pages being written": before(RoundJob, "run", since=STOPPED)}
"""Of a guest that stood still before: all its pages are written when it is certain that it stands."""
PAST_THE_CACHE = ["first pass begun", "first pass done", "pages being written"]
"""Steps that are others where pages are written bypassing the page cache."""
NEXT = unless_thorough(
    [
        "memory for the device state handed over",
        "armed",
        "pages being written",
        "device state there",
        "synced",
        "renamed",
    ],
    STEPS,
)
"""Steps after which the next save is tried: one of each kind of thing that is left to it, in QEMU or in the folder."""
NO_FILE = list(STEPS)[: list(STEPS).index("file made")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, qemu_binary: str) -> list[str]:
    """A small guest: 100 rounds a second over 1..8 MiB."""
    path = tmp_path_factory.mktemp("small") / "image"
    path.write_bytes(boot_image(end=8 * MIB))
    return boot_from(path)


@pytest.fixture(scope="module")
def guest(image: list[str]) -> Iterator[QemuProcess]:
    """The same guest for all of them: whatever happened to the saves before, it runs."""
    with QemuProcess(*image, ram=Ram(32 * MIB)) as guest:
        guest.wait_serial("C")
        yield guest


def saving(guest: QemuProcess, file: Path, *more: object, **options: object) -> Forked:
    """By comparing, which is where the guest stands still for long."""
    argv = ["save", file, "--qmp", guest.monitor_path, "--capture", "compare"]
    argv += ["--channels", 2, "--experimental-multifd", *more]
    return Forked(*argv, **options)


def save_now(guest: QemuProcess, file: Path, *more: object) -> Result:
    with saving(guest, file, *more) as running:
        result = done(running.finish())
        assert running.left() == []
    return result


def seconds_until_it_runs(guest: QemuProcess, since: float) -> float:
    """Wait until the guest runs without being told to by us, and show that it does."""
    while guest.status() != "running":
        guest.wait_event("RESUME", PATIENCE_SECONDS)  # it may be an earlier one
    seconds = time.monotonic() - since
    guest.take_serial()
    guest.wait_serial("[A-Z]")
    return seconds


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sends_itself(signum: int) -> Callable[..., None]:
    """To the command, in whichever of its processes this is called."""
    coordinator = os.getpid()

    def send(*_: object) -> None:
        is_worker = os.getppid() != coordinator
        os.kill(os.getppid() if is_worker else os.getpid(), signum)

    return send


def writes_and_dies(data: bytes) -> Callable[..., None]:
    """For a call of a Monitor: what of it reaches the wire before the end."""

    def act(monitor: Monitor, *_: object) -> None:
        os.write(monitor.sock.fileno(), data)
        die()

    return act


def check_goes_on(guest: QemuProcess, running: Forked, took: Took) -> None:
    """The command was killed: the guest runs, and nobody is left."""
    code = running.finish().code
    seconds = seconds_until_it_runs(guest, running.acted)
    assert code == -signal.SIGKILL
    assert running.left() == []
    took(RUNS_ON, seconds)


def check_next_save(guest: QemuProcess, file: Path) -> None:
    save_now(guest, file, "--overwrite")
    assert os.listdir(file.parent) == [file.name]
    assert parallel_fixedram.verify(str(file)).ok


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step(guest: QemuProcess, tmp_path: Path, step: str, took: Took) -> None:
    file = tmp_path / "vm.mr"
    with saving(guest, file, "--direct-io", "off", moment=STEPS[step], act=sends_itself(signal.SIGKILL)) as running:
        check_goes_on(guest, running, took)

    assert os.listdir(tmp_path) == ([] if step in NO_FILE else [file.name if step in RENAMED else part_of(file).name])
    if step in RENAMED:
        assert parallel_fixedram.verify(str(file)).ok
    if step in NEXT:
        check_next_save(guest, file)


@pytest.mark.parametrize("step", PAST_THE_CACHE)
def test_killed_at_any_step_past_the_page_cache(guest: QemuProcess, tmp_path: Path, step: str, took: Took) -> None:
    file = tmp_path / "vm.mr"
    try:
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct I/O")
    finally:
        file.unlink(missing_ok=True)
    with saving(guest, file, "--direct-io", "on", moment=STEPS[step], act=sends_itself(signal.SIGKILL)) as running:
        check_goes_on(guest, running, took)
    assert os.listdir(tmp_path) == [part_of(file).name]
    check_next_save(guest, file)


@pytest.mark.parametrize(
    "written", [b'{"exec', b'{"execute": "stop"', line({"execute": "stop", "id": "x"}), line({"execute": "stop"}) * 2]
)
def test_killed_when_a_part_of_the_request_to_stop_is_on_the_wire(
    guest: QemuProcess, tmp_path: Path, written: bytes, took: Took
) -> None:
    file = tmp_path / "vm.mr"
    moment = before(Monitor, "execute", "stop")
    with saving(guest, file, moment=moment, act=writes_and_dies(written)) as running:
        check_goes_on(guest, running, took)
    check_next_save(guest, file)


def test_killed_when_a_part_of_the_request_to_go_on_is_on_the_wire(
    guest: QemuProcess, tmp_path: Path, took: Took
) -> None:
    file = tmp_path / "vm.mr"
    moment = before(Monitor, "execute", "cont")
    with saving(guest, file, moment=moment, act=writes_and_dies(b'{"execute": "con')) as running:
        check_goes_on(guest, running, took)
    check_next_save(guest, file)


@pytest.mark.parametrize("step", ["RAM reached", "workers up", "pages being written", "device state there", "synced"])
def test_a_guest_that_stood_still_before_stays_so(guest: QemuProcess, tmp_path: Path, step: str) -> None:
    file = tmp_path / "vm.mr"
    guest.stop()
    try:
        with saving(guest, file, moment=STILL[step], act=sends_itself(signal.SIGKILL)) as running:
            assert running.finish().code == -signal.SIGKILL
            assert running.left() == []
        assert guest.status() == "paused"
        check_next_save(guest, file)
        assert guest.status() == "paused"
        assert guest.take_serial() is not None
    finally:
        guest.cont()


@pytest.mark.parametrize("step", STEPS)
def test_a_signal_at_any_step(guest: QemuProcess, tmp_path: Path, step: str) -> None:
    file = tmp_path / "vm.mr"
    for signum in in_turn((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), list(STEPS).index(step)):
        with saving(guest, file, "--direct-io", "off", moment=STEPS[step], act=sends_itself(signum)) as running:
            result = running.finish()
            assert guest.status() == "running"
            assert running.acted
            refused(result, 128 + signum, f"error: interrupted by {signum.name}\n", "")
            assert running.left() == []
        assert os.listdir(tmp_path) == ([file.name] if step in RENAMED else [])
        file.unlink(missing_ok=True)
    seconds_until_it_runs(guest, time.monotonic())
    if step in NEXT:
        save_now(guest, file)


def test_a_save_survives_its_guardian(guest: QemuProcess, tmp_path: Path) -> None:
    def kill(guardian: Guardian) -> None:
        os.kill(guardian._pid, signal.SIGKILL)

    with saving(guest, tmp_path / "vm.mr", moment=behind(Guardian, "__enter__"), act=kill) as running:
        done(running.finish())
        assert running.acted
        assert running.left() == []
    assert guest.status() == "running"


def test_a_save_survives_a_worker(guest: QemuProcess, tmp_path: Path) -> None:
    file = tmp_path / "vm.mr"
    with saving(guest, file, moment=before(ChangedJob, "run", since=STOPPED), act=die) as running:
        result = done(running.finish())
        assert "was killed by SIGKILL; its shard goes to another one" in result.err
        assert running.left() == []
    assert guest.status() == "running"
    assert parallel_fixedram.verify(str(file)).ok


class TestAtASystemCall:
    """By the injector, which knows nothing of steps: a sample of all calls on the file, whoever makes them."""

    @pytest.fixture(autouse=True)
    def needs_the_injector(self) -> None:
        if reason := faults.why_not():
            pytest.skip(reason)

    @staticmethod
    def saved(guest: QemuProcess, file: Path, at: int, kill: Callable[[Call, Run], Kill | None]) -> Run:
        """A save in which, of the calls that there is an answer to, the one of this number gets it."""

        def decide(call: Call, run: Run) -> Kill | None:
            nonlocal seen
            if run.faults or (answer := kill(call, run)) is None:
                return None
            seen += 1
            return answer if seen > at else None

        seen = 0
        argv = ["save", str(file), "--qmp", str(guest.monitor_path), "--channels", "2", "--experimental-multifd"]
        run = faults.run(lambda: main([*argv, "--overwrite"]), under=str(file.parent), decide=decide)
        if run.faults:
            seconds_until_it_runs(guest, time.monotonic())
        assert not run.hung
        assert run.orphans == ()
        return run

    def test_killed(self, guest: QemuProcess, tmp_path: Path) -> None:
        file = tmp_path / "vm.mr"
        done_at = 0
        for at in range(0, 1000, 17 if thorough() else 29):
            run = self.saved(guest, file, at, lambda call, run: Kill([run.root]))
            if not run.faults:
                assert run.value == 0, run.stderr
                break
            assert run.exit_code == -signal.SIGKILL
            assert set(os.listdir(tmp_path)) <= {part_of(file).name, file.name}
            done_at += 1
        assert done_at > 3
        check_next_save(guest, file)

    def test_a_worker_killed(self, guest: QemuProcess, tmp_path: Path) -> None:
        file = tmp_path / "vm.mr"
        died = 0
        for at in range(0, 1000, 7 if thorough() else 61):
            run = self.saved(guest, file, at, lambda call, run: Kill([call.pid]) if call.by_worker else None)
            assert run.value == 0, run.stderr
            assert os.listdir(tmp_path) == [file.name]
            if not run.faults:
                break
            died += 1
        assert died
        assert parallel_fixedram.verify(str(file)).ok
