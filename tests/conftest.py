"""The same examples every time, however slow the machine; no signal handlers and no cache that outlive a test run."""

import errno
import gc
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import none
from support.fault_matrix import count, nothing_is_left, pytest_terminal_summary, took
from support.models import FOUR_PAY, ToldCosts
from support.refusing import Refuse, refuse_with

__all__ = ["count", "nothing_is_left", "pytest_terminal_summary", "took"]

for name, examples in (("repeatable", 25), ("quick", 6), ("soak", 500)):  # as `make test-fast` and `make soak` ask for
    settings.register_profile(
        name,
        derandomize=True,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow],
    )
# for a run that only asks whether something fails, not what is the simplest that does
settings.register_profile("no-shrinking", settings.get_profile("quick"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[Any]:
    """The command, run inside a test, sets handlers for the rest of its life, and later tests fork."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return (yield)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def pytest_configure(config: pytest.Config) -> None:
    """What one save measures and the next one uses is not the user's, and is empty at first; nor are run folders.

    Signals that are ignored here, as nohup and a shell's background have it, would be by every command of a test.
    """
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, handler)
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        os.environ[name] = tempfile.mkdtemp(prefix="parallel-fixedram-tests-")
        config.add_cleanup(lambda folder=os.environ[name]: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Have a system call fail."""
    return refuse_with(monkeypatch)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ToldCosts:
    """What writes cost is told from now on."""
    from parallel_fixedram.engine.tuning import calibrate

    told = ToldCosts()
    monkeypatch.setattr(calibrate, "device_model", told)
    return told


@pytest.fixture
def four_pay(costs: ToldCosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of four processors, and a device on which four channels pay."""
    costs.model = FOUR_PAY
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


class RefuseDirectIO(Protocol):
    """The fixture ``refuse_direct_io``."""

    def __call__(self, error: int = errno.EINVAL) -> None:
        """From now on no file can be opened for direct I/O."""


@pytest.fixture
def refuse_direct_io(monkeypatch: pytest.MonkeyPatch) -> RefuseDirectIO:
    """File systems that have none, or that fail when it is asked for."""
    real = os.open

    def refuse(error: int = errno.EINVAL) -> None:
        def opened(path: str, flags: int, *mode: int, **more: Any) -> int:
            if flags & os.O_DIRECT:
                raise OSError(error, os.strerror(error))
            return real(path, flags, *mode, **more)

        monkeypatch.setattr(os, "open", opened)

    return refuse


class FailSync(Protocol):
    """The fixture ``fail_sync``."""

    def __call__(self, *, folders: bool) -> None:
        """From now on no folder can be synced, or no file."""


@pytest.fixture
def fail_sync(monkeypatch: pytest.MonkeyPatch) -> FailSync:
    """A device that cannot write what it was given."""
    real = os.fsync

    def fail(*, folders: bool) -> None:
        def sync(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode) == folders:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

        monkeypatch.setattr(os, "fsync", sync)

    return fail


@pytest.fixture
def leave_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many bytes the control group of these tests may still take before something is killed."""
    from parallel_fixedram.host.memory import memory_limit

    return lambda size: monkeypatch.setattr(memory_limit, "memory_until_killed", lambda _pid: size)


@pytest.fixture
def without_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems give none, as NFS and FUSE."""
    monkeypatch.setattr("parallel_fixedram.host.files.holders._gets_lease", lambda _: None)


@pytest.fixture
def run_folders_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Says which is the only place where run folders are looked for."""
    from parallel_fixedram.boot import left_folders, run_folder

    def look_in(place: Path) -> None:
        for module in (run_folder, left_folders):
            monkeypatch.setattr(module, "places", lambda: [str(place)])

    return look_in


@settings(max_examples=1, database=None)
@given(none())
def use_hypothesis(_: None) -> None:
    """What it makes at its first use is there."""


def pytest_collection_finish() -> None:
    """What is there by now stays: no collection looks at it again, and so no forked process copies it.

    At its first use Hypothesis asks who refers to its random numbers, and is not told of the frozen (gc.get_referrers).
    """
    use_hypothesis()
    gc.collect()
    gc.freeze()
