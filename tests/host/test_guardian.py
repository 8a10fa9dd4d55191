"""The guardian acts when we die, and only then. "We" are a fork that is killed; a pipe shows what the guardian did.

The pipe's end shows that it has done all it will do: nobody else has it open.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest
from support.leftovers import descriptors
from support.system_calls import FORKING, without

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host.processes import forked
from parallel_fixedram.host.processes.guardian import Guardian


def put(fd: int, data: bytes) -> None:
    os.write(fd, data)


class Us:
    """A fork that has a guardian, does something with it, and waits for its end.

    Args:
        prepare: what it does with its guardian.
        act: what the guardian writes into the pipe.
    """

    def __init__(self, prepare: Callable[[Guardian], object], act: Callable[[], bytes] = lambda: b"acted") -> None:
        self._seen, seen = os.pipe2(os.O_CLOEXEC)
        told, tell = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                with Guardian(lambda: put(seen, act()), [seen]) as guardian:
                    prepare(guardian)
                    os.write(tell, str(guardian._pid).encode())
                    while True:
                        signal.pause()
            finally:
                os._exit(1)
        os.close(seen)
        os.close(tell)
        self.guardian = int(os.read(told, 20))
        os.close(told)
        try:
            while os.getsid(self.guardian) != self.guardian:
                os.sched_yield()  # it ignores signals by then
        except BaseException:
            self.end()
            raise

    def end(self, send: Callable[[int], object] = lambda pid: os.kill(pid, signal.SIGKILL)) -> bytes:
        """Kill the fork; returns what its guardian did."""
        send(self.pid)
        os.waitpid(self.pid, 0)
        found = b""
        while data := os.read(self._seen, 4096):
            found += data
        os.close(self._seen)
        return found


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd")), psutil.Process().children()
    yield
    assert (set(os.listdir("/proc/self/fd")), psutil.Process().children()) == before


def armed(guardian: Guardian) -> None:
    guardian.arm()


def disarmed(guardian: Guardian) -> None:
    guardian.arm()
    guardian.disarm()


def armed_again(guardian: Guardian) -> None:
    disarmed(guardian)
    guardian.arm()


@pytest.mark.parametrize(
    ("prepare", "done"),
    [(armed, b"acted"), (armed_again, b"acted"), (disarmed, b""), (lambda _: None, b"")],
    ids=["armed", "armed again", "disarmed", "never armed"],
)
def test_it_acts_after_our_death_if_it_is_armed(prepare: Callable[[Guardian], object], done: bytes) -> None:
    assert Us(prepare).end() == done


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE])
def test_it_ignores_the_signals_that_are_meant_for_us(signum: signal.Signals) -> None:
    us = Us(armed)
    os.kill(us.guardian, signum)
    assert us.end() == b"acted"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_what_ends_our_process_group_does_not_end_it(signum: signal.Signals) -> None:
    us = Us(armed)
    assert os.getpgid(us.guardian) != us.pid
    assert us.end(lambda pid: os.killpg(pid, signum)) == b"acted"


def test_it_holds_no_descriptor_but_what_it_needs() -> None:
    def look() -> bytes:
        names = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # that of the list itself
                names.append(os.readlink(f"/proc/self/fd/{name}"))
        return "\n".join(names).encode()

    kept = os.open("/proc/self/status", os.O_RDONLY)  # what we have open at that moment is none of its business
    found = Us(armed, look).end().decode().splitlines()
    os.close(kept)
    own = [name for name in found if name.startswith("anon_inode:")]
    assert sorted(own) in (["anon_inode:[eventfd]", "anon_inode:[pidfd]"], ["anon_inode:[eventfd]"])
    rest = sorted(name for name in found if name not in own and not name.startswith("pidfd:"))
    assert rest[:3] == ["/dev/null"] * 3
    assert len(rest) == 4
    assert rest[3].startswith("pipe:")


def test_an_act_that_fails_ends_it_all_the_same() -> None:
    def fail() -> bytes:
        raise KeyError

    assert Us(armed, fail).end() == b""


def test_closing_it_ends_its_process_and_nothing_is_done() -> None:
    seen, act = os.pipe2(os.O_CLOEXEC)
    with Guardian(lambda: put(act, b"x"), [act]) as guardian:
        guardian.arm()
        pid = guardian._pid
        os.kill(pid, 0)
    guardian.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    os.close(act)
    assert os.read(seen, 1) == b""
    os.close(seen)


@pytest.mark.parametrize(("prepare", "done"), [(armed, b"acted"), (disarmed, b"")])
def test_one_that_is_let_go_acts_at_once_as_if_we_had_died(prepare: Callable[[Guardian], object], done: bytes) -> None:
    seen, act = os.pipe2(os.O_CLOEXEC)
    with Guardian(lambda: put(act, b"acted"), [act]) as guardian:
        prepare(guardian)
        guardian.let_go()
        guardian.let_go()
    os.close(act)
    assert os.read(seen, 9) == done
    os.close(seen)
    while forked._left:  # a busy machine: it may take longer than it is waited for
        forked.reap_left()


def test_one_that_has_to_prepare_first_says_when_it_has_or_why_it_cannot() -> None:
    seen, act = os.pipe2(os.O_CLOEXEC)
    with Guardian(lambda: put(act, b"acted"), [act], lambda: put(act, b"prepared")) as guardian:
        guardian.await_ready()
        guardian.await_ready()
        assert os.read(seen, 9) == b"prepared"
        guardian.arm()
        guardian.let_go()
    os.close(act)
    assert os.read(seen, 9) == b"acted"
    os.close(seen)

    def fail() -> None:
        raise MachineError("nobody is there")

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for prepare, reason in ((fail, "nobody is there"), (die, "it has ended")):
        with Guardian(lambda: None, prepare=prepare) as guardian, pytest.raises(HostError, match=reason):
            guardian.await_ready()
    while forked._left:
        forked.reap_left()


def test_where_no_process_can_be_started_nothing_is_left_open() -> None:
    def attempt() -> set[tuple[str, str]]:
        before = descriptors()
        with pytest.raises(HostError, match="cannot start the process that looks after the guest"):
            Guardian(lambda: None).__enter__()
        return descriptors() ^ before

    assert without(FORKING, errno.EAGAIN, attempt) == set()


def test_a_signal_while_it_is_made_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def fork() -> int:
        pid = real()
        if pid:
            signal.raise_signal(signal.SIGUSR1)
        return pid

    real, before = os.fork, signal.signal(signal.SIGUSR1, interrupt)
    monkeypatch.setattr(os, "fork", fork)
    try:
        with pytest.raises(Interrupted):
            Guardian(lambda: None).__enter__()
    finally:
        signal.signal(signal.SIGUSR1, before)
