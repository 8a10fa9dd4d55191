"""The same examples every time, however slow the machine; no signal handlers and no cache that outlive a test run."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import none
from support.fault_matrix import count, nothing_is_left, pytest_terminal_summary, took
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
