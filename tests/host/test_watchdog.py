"""The watchdog ends a process that is silent for too long, and no other; what it saw stands in shared memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from numpy.typing import NDArray
from support.leftovers import children, descriptors

from parallel_fixedram.host.memory.anonymous import anonymous_memory
from parallel_fixedram.host.processes import forked
from parallel_fixedram.host.processes.watchdog import Watchdog, WatchdogVerdict

LONG = 30.0
Words = NDArray[np.uint64]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = descriptors(), children()
    yield
    assert (descriptors(), children()) == before


@pytest.fixture
def words() -> Words:
    """Beat and verdict."""
    return np.frombuffer(anonymous_memory(16, shared=True), np.uint64)


@pytest.fixture
def watched() -> Iterator[int]:
    """The pidfd of a process that does nothing."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    pidfd = os.pidfd_open(pid)
    yield pidfd
    os.close(pidfd)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def the_end_of(watchdog: Watchdog) -> None:
    assert forked.has_ended(watchdog._pidfd, LONG)


def test_who_is_silent_for_too_long_is_killed(watched: int, words: Words) -> None:
    words[0] = time.monotonic_ns()
    with closing(Watchdog(watched, words[:1], words[1:], seconds=0.05)) as watchdog:
        the_end_of(watchdog)
        assert forked.has_ended(watched, LONG)
        assert words[1] == WatchdogVerdict.KILLED
        assert not watchdog.is_watching()


def test_who_is_stopped_is_killed_as_well(watched: int, words: Words) -> None:
    words[0] = time.monotonic_ns()
    signal.pidfd_send_signal(watched, signal.SIGSTOP)
    with closing(Watchdog(watched, words[:1], words[1:], seconds=0.05)):
        assert forked.has_ended(watched, LONG)


def test_who_is_heard_of_lives(watched: int, words: Words) -> None:
    """A beat from the future stands for one that comes again and again."""
    words[0] = time.monotonic_ns() + 10**12
    with closing(Watchdog(watched, words[:1], words[1:], seconds=0.001)) as watchdog:
        assert not forked.has_ended(watchdog._pidfd, 0.02)
        assert not forked.has_ended(watched)
    assert words[1] == WatchdogVerdict.FINE


def test_the_end_of_the_other_one_is_seen_and_ends_it(watched: int, words: Words) -> None:
    words[0] = time.monotonic_ns()
    with closing(Watchdog(watched, words[:1], words[1:], seconds=LONG)) as watchdog:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        the_end_of(watchdog)
        assert words[1] == WatchdogVerdict.ENDED


def test_it_is_deaf_to_signals_meant_for_us_and_has_a_session_of_its_own(watched: int, words: Words) -> None:
    words[0] = time.monotonic_ns()
    with closing(Watchdog(watched, words[:1], words[1:], seconds=LONG)) as watchdog:
        while os.getsid(watchdog.pid) != watchdog.pid:
            os.sched_yield()  # it ignores signals by then
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(watchdog.pid, signum)
        assert watchdog.is_watching()


def test_it_keeps_nothing_open_but_what_it_watches(watched: int, words: Words) -> None:
    """A pipe of ours that it held would not end when we close it."""
    read, write = os.pipe()
    words[0] = time.monotonic_ns()
    with closing(Watchdog(watched, words[:1], words[1:], seconds=LONG)):
        os.close(write)
        assert os.read(read, 1) == b""
    os.close(read)


def test_where_it_was_asleep_itself_it_looks_again_before_it_judges(
    watched: int, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when all were frozen and thawed: the other one gets a turn."""
    now = [100.0, 200.0, 200.25]
    looks = np.frombuffer(anonymous_memory(8, shared=True), np.uint64)

    class Clock:
        @staticmethod
        def monotonic() -> float:
            looks[0] += 1
            return now[int(looks[0]) - 1]

    monkeypatch.setattr("parallel_fixedram.host.processes.watchdog.time", Clock)
    words[0] = int(100e9)
    with closing(Watchdog(watched, words[:1], words[1:], seconds=0.5)) as watchdog:
        the_end_of(watchdog)
    assert (looks[0], words[1]) == (3, WatchdogVerdict.KILLED)
