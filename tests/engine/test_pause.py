"""The machine goes on whatever happens while it stands still."""

import contextlib
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from support.saving import save, several
from support.sources import ScriptedGuest

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.capture import pause as pause_module
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.pages.changed_job import ChangedJob
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.host.processes import signals

PATIENCE_SECONDS = 60


class Interrupted(BaseException):
    """What the command's signal handlers raise."""


class Broken(ScriptedGuest):
    """A machine one of whose answers is an error."""

    def __init__(self, what: str, error: BaseException, **more: Any) -> None:
        super().__init__({"ram": "A"}, **more)
        self._what, self._error = what, error

    def pause(self) -> bool:
        stopped = super().pause()
        if self._what == "pause":
            raise self._error
        return stopped

    def resume(self) -> None:
        super().resume()
        if self._what == "resume":
            raise self._error

    def device_state(self) -> bytes:
        super().device_state()
        if self._what == "device_state":
            raise self._error
        return b""


@pytest.fixture
def interrupting() -> Iterator[Callable[[], None]]:
    """SIGUSR1 raises Interrupted, once until the function is called: further ones do nothing, as with the command."""

    def handler(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        raise Interrupted

    def again() -> None:
        signal.signal(signal.SIGUSR1, handler)

    before = signal.signal(signal.SIGUSR1, handler)
    yield again
    signal.signal(signal.SIGUSR1, before)


def test_the_machine_stands_still_inside_and_runs_afterwards() -> None:
    with ScriptedGuest({"ram": "A"}, device_state=b"state") as guest:
        with Pause(guest) as pause:
            assert not guest.running
            pause.begin_device_state()
            assert pause.device_state() == pause.device_state() == b"state"
        assert guest.running
        assert guest.calls == ["pause", "device_state", "resume"]
        assert pause.was_running
        assert pause.seconds >= max(pause.stop_seconds, pause.cont_seconds)
        assert pause.device_state() == b"state"


def test_a_machine_that_stood_still_stays_so() -> None:
    with ScriptedGuest({"ram": "A"}, running=False) as guest:
        with Pause(guest) as pause:
            pass
        assert not guest.running
        assert not pause.was_running


@pytest.mark.parametrize("error", [HostError("no"), KeyError("no"), KeyboardInterrupt(), Interrupted(), SystemExit(1)])
def test_it_goes_on_after_any_error_inside(error: BaseException) -> None:
    with ScriptedGuest({"ram": "A"}) as guest:
        with pytest.raises(type(error)), Pause(guest):
            raise error
        assert guest.running


@pytest.mark.parametrize("error", [MachineError("no answer"), OSError(5, "no"), KeyboardInterrupt(), Interrupted()])
def test_it_goes_on_when_the_answer_to_the_pause_is_lost(error: BaseException) -> None:
    """It may have stopped all the same."""
    with Broken("pause", error) as guest:
        with pytest.raises(type(error)), Pause(guest):
            pytest.fail("nothing may run inside")
        assert guest.running
        assert guest.calls == ["pause", "resume"]


def test_it_goes_on_when_its_device_state_cannot_be_had() -> None:
    error = MachineError("no device state")
    with Broken("device_state", error) as guest:
        pause = Pause(guest)
        with pytest.raises(MachineError) as caught, pause:
            take_state(pause)
        assert caught.value is error
        assert guest.running


def test_it_goes_on_only_when_its_device_state_is_written() -> None:
    """A monitor takes one request at a time: the request to go on would come in between."""
    begun, finish = os.pipe()

    def state() -> bytes:
        os.read(begun, 1)
        guest.calls.append("written")
        return b""

    with ScriptedGuest({"ram": "A"}, device_state=state) as guest:
        pause = Pause(guest)
        shutdown = pause._thread.shutdown
        pause._thread.shutdown = lambda **how: (os.write(finish, b"x"), shutdown(**how))
        with contextlib.suppress(Interrupted), pause:
            pause.begin_device_state()
            raise Interrupted
        assert guest.calls == ["pause", "device_state", "written", "resume"]
    os.close(begun)
    os.close(finish)


def test_what_went_wrong_first_is_told() -> None:
    with Broken("resume", MachineError("does not go on")) as guest:
        with pytest.raises(HostError, match="first"), Pause(guest):
            raise HostError("first")
        with pytest.raises(MachineError, match="does not go on"), Pause(guest):
            pass


def take_state(pause: Pause) -> None:
    pause.begin_device_state()
    pause.device_state()


def signal_at(place: int) -> tuple[Callable[..., Any], list[str]]:
    """A trace function that raises SIGUSR1 at the ``place``-th line of a pause, and a list that says which it was.

    No context manager can help it if the signal is faster than the first line of ``__exit__``: a guardian is there.
    """
    files, lines, found = {pause_module.__file__, signals.__file__}, iter(range(1, place + 1)), list[str]()

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and frame.f_code.co_name != "__exit__" and next(lines, 0) == place:
            found.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            signal.raise_signal(signal.SIGUSR1)
        return trace

    return trace, found


def test_it_goes_on_at_whatever_line_a_signal_arrives(interrupting: Callable[[], None]) -> None:
    place, found, before = 0, ["none yet"], sys.gettrace()
    while found:
        place += 1
        trace, found = signal_at(place)
        with ScriptedGuest({"ram": "A"}) as guest:
            pause = Pause(guest)
            try:
                sys.settrace(trace)
                with pause:
                    take_state(pause)
            except Interrupted:
                assert found
            finally:
                sys.settrace(before)
            assert (guest.running, gc.isenabled()) == (True, True), f"at line {place}: {found}"
        interrupting()
    assert place > 30


@pytest.mark.parametrize("what", ["pause", "device_state", "resume", "nothing"])
def test_garbage_is_collected_again_afterwards_and_not_meanwhile(what: str) -> None:
    with Broken(what, MachineError("no")) as guest:
        pause = Pause(guest)
        pause.prepare()
        assert gc.isenabled()
        with contextlib.suppress(MachineError), pause:
            assert not gc.isenabled()
            take_state(pause)
        assert gc.isenabled()
        gc.disable()
        try:
            with contextlib.suppress(MachineError), Pause(guest):
                pass
            assert not gc.isenabled()
        finally:
            gc.enable()


# --- in a save


@pytest.mark.parametrize("what", ["pause", "device_state"])
def test_a_save_whose_machine_fails_leaves_it_running_and_no_file(target: str, what: str) -> None:
    with Broken(what, MachineError("no answer")) as guest:
        with pytest.raises(MachineError, match="no answer"):
            save(guest, target, several(direct_io=DirectIO.OFF))
        assert guest.running
        assert guest.calls[-1] == "resume"
    assert os.listdir(os.path.dirname(target)) == []


def test_device_state_that_is_none_is_refused_and_leaves_the_machine_running(target: str) -> None:
    with ScriptedGuest({"ram": "A"}, device_state=b"no sections") as guest:
        with pytest.raises(MachineError, match="the device state is malformed: at 0x0: not whole"):
            save(guest, target, several(direct_io=DirectIO.OFF))
        assert guest.running
    assert os.listdir(os.path.dirname(target)) == []


class Rendezvous:
    """Two processes meet: each goes on when the other one has come, or says no after a minute."""

    def __init__(self) -> None:
        self._pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]

    def meet(self, side: int) -> bool:
        os.write(self._pipes[side][1], b"x")
        other = self._pipes[1 - side][0]
        return bool(select.select([other], [], [], PATIENCE_SECONDS)[0]) and os.read(other, 1) == b"x"

    def close(self) -> None:
        for fd in (fd for pipe in self._pipes for fd in pipe):
            os.close(fd)


def test_device_state_is_asked_for_while_the_last_round_is_written(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two waits for the other one, so one after the other would never end."""
    meeting, met, run = Rendezvous(), list[bool](), ChangedJob.run

    def last_round(job: ChangedJob, shard: Shard) -> Tally:
        assert meeting.meet(0)
        return run(job, shard)

    def state() -> bytes:
        met.append(meeting.meet(1))
        return b""

    monkeypatch.setattr(ChangedJob, "run", last_round)
    with ScriptedGuest({"ram": "ABC"}, device_state=state) as guest:
        save(guest, target, several())
        assert guest.calls == ["pause", "device_state", "resume"]
    assert met == [True]
    meeting.close()
