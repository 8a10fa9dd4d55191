"""The monitor against a server that does what no QEMU does, or not to order."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from qemu.qmp import QMPClient, Runstate
from support.fake_qmp import (
    GREETING,
    MIB,
    Answer,
    FakeQmp,
    FdSets,
    Later,
    Request,
    chain,
    closes,
    dies,
    endless_line,
    event,
    floods,
    hangs,
    ignores,
    in_turn,
    line,
    refuses,
    renamed,
    returns,
    sends,
    signals,
    slowly,
)

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.qemu.event_loop import EventLoop
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor

SHORT = 0.2
ENOUGH = 30.0


class Interrupted(BaseException):
    """What the command's signal handlers raise."""


@pytest.fixture(autouse=True)
def nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No descriptor, no thread, no task; the event loop complains of tasks in the log."""
    gc.collect()
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with caplog.at_level(logging.DEBUG, "parallel_fixedram.machines.qemu"):
        yield
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads)
    assert not [record for record in caplog.records if "event loop" in record.getMessage()]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., FakeQmp]]:
    """Starts a server; before anything is connected, or the server keeps that open."""
    with contextlib.ExitStack() as stack:
        yield lambda answers=None, **options: stack.enter_context(FakeQmp(tmp_path / "qmp", answers or {}, **options))


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[int, FrameType | None], Any]], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler) and None
    signal.signal(signal.SIGUSR1, before)


def interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise Interrupted


def failure(path: Path, **options: Any) -> MachineError:
    """How the connection is refused."""
    with pytest.raises(MachineError) as caught:
        Monitor(str(path), **options)
    return checked(caught.value, path)


def checked(error: MachineError, path: Path) -> MachineError:
    assert f"QMP socket {str(path)!r}" in error.message
    assert error.message.isprintable()
    assert len(error.message) < 400 + len(str(path))
    return error


class TestConversation:
    def test_a_command_returns_what_the_server_returns(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"query-status": returns({"status": "running"}), "qom-get": returns([1, "ü", None])})
        with Monitor(str(server.path)) as monitor:
            assert monitor.execute("query-status") == {"status": "running"}
            assert monitor.execute("qom-get", {"path": "/", "property": "x"}) == [1, "ü", None]
        assert server.requests[1:] == [("query-status", {}), ("qom-get", {"path": "/", "property": "x"})]

    def test_it_says_whom_it_talks_to(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve()
        with Monitor(str(server.path)) as monitor:
            assert monitor.version == (10, 0, 2)
            assert monitor.peer_pid == server.pid
            assert monitor.name == str(server.path)
            assert monitor.sock.getpeername() == str(server.path)

    def test_slow_bytes_make_a_whole_answer(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": slowly(returns({"a": 1}))}, greeting=slowly(sends(GREETING)))
        with Monitor(str(server.path)) as monitor:
            assert monitor.execute("stop") == {"a": 1}

    def test_a_command_needs_no_event_loop(
        self, serve: Callable[..., FakeQmp], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With it a command takes three times as long, and a guest waits."""
        server = serve({"stop": chain(sends(event("STOP")), returns({}))})
        with Monitor(str(server.path)) as monitor, monitor.listen("STOP") as events, monkeypatch.context() as patch:
            patch.delattr(EventLoop, "run")
            assert monitor.execute("stop") == {}
            assert [each["event"] for each in events.take()[0]] == ["STOP"]

    def test_an_event_of_which_the_library_has_read_a_half_arrives(self, serve: Callable[..., FakeQmp]) -> None:
        told = event("STOP")
        server = serve({"stop": chain(returns({}), sends(told[:20])), "cont": chain(sends(told[20:]), returns(1))})
        with Monitor(str(server.path)) as monitor, monitor.listen("STOP") as events:
            monitor.execute("stop")
            with pytest.raises(MachineError, match="no event STOP within"):
                events.wait(SHORT)
            assert monitor.execute("cont") == 1
            assert events.wait()["event"] == "STOP"

    def test_late_answers_to_somebody_before_us_are_not_ours(self, serve: Callable[..., FakeQmp]) -> None:
        """A QEMU that hung answers whoever is connected by then; ids that all begin with 0 would not tell."""
        ids = [number for n in range(50) for number in (str(n), f"__qmp#{n:05d}")]
        late = chain(*[sends(line({"return": {}, "id": each})) for each in ids])
        server = serve({"add-fd": chain(late, returns(1)), "query-status": chain(late, returns(2))})
        with Monitor(str(server.path)) as monitor:
            assert monitor.execute("query-status") == 2
            assert monitor.execute("add-fd", fd=0) == 1

    def test_a_large_answer_is_read(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"human-monitor-command": returns("x" * (9 * MIB))})
        with Monitor(str(server.path)) as monitor:
            assert len(monitor.hmp("info all")) == 9 * MIB

    def test_a_refusal_is_in_the_servers_words_and_the_session_goes_on(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"add-fd": refuses("No file\r\n\x1b[31mdescriptor \ud800" + "x" * 1000), "stop": returns({})})
        with Monitor(str(server.path)) as monitor:
            with pytest.raises(MachineError) as caught:
                monitor.execute("add-fd")
            assert "QEMU refuses 'add-fd': No file\\r\\n\\x1b[31mdescriptor \\ud800xxx" in caught.value.message
            checked(caught.value, server.path)
            assert monitor.execute("stop") == {}

    def test_what_json_cannot_say_is_the_callers_mistake(self, serve: Callable[..., FakeQmp]) -> None:
        with Monitor(str(serve({"stop": returns(1)}).path)) as monitor:
            with pytest.raises(TypeError):
                monitor.execute("stop", {"a": object()})
            assert monitor.execute("stop") == 1

    def test_descriptors_arrive(self, serve: Callable[..., FakeQmp]) -> None:
        sets = FdSets()
        server = serve({**sets.answers, "xen-save-devices-state": sets.writes("filename", b"state")})
        reader, writer = os.pipe()
        with open(reader, "rb") as state, Monitor(str(server.path)) as monitor:
            with FdSet(monitor) as fdset:
                fdset.add(writer)
                os.close(writer)
                monitor.execute("xen-save-devices-state", {"filename": fdset.path, "live": False})
            assert state.read() == b"state"
        assert server.requests[1] == ("add-fd", {"opaque": "parallel-fixedram"})

    def test_two_threads_can_take_turns(self, serve: Callable[..., FakeQmp]) -> None:
        answers: list[Any] = []
        with Monitor(str(serve({"stop": returns(1)}).path)) as monitor:
            thread = threading.Thread(target=lambda: answers.append(monitor.execute("stop")))
            thread.start()
            thread.join()
            answers.append(monitor.execute("stop"))
        assert answers == [1, 1]


class TestNoQmpThere:
    def test_no_file(self, tmp_path: Path) -> None:
        error = failure(tmp_path / "none")
        assert error.message == f"cannot connect to QMP socket '{tmp_path}/none': no such file or directory"

    def test_no_socket(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert failure(tmp_path / "file").message.endswith(": connection refused")

    def test_nobody_listens(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "qmp"))
            assert failure(tmp_path / "qmp").message.endswith(": connection refused")

    def test_another_kind_of_socket(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(tmp_path / "qmp"))
            assert failure(tmp_path / "qmp").message.endswith(": protocol wrong type for socket")

    def test_too_long_a_path(self, tmp_path: Path) -> None:
        assert failure(tmp_path / ("x" * 200)).message.endswith(": AF_UNIX path too long")

    def test_a_queue_of_other_clients(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as other:
            sock.bind(str(tmp_path / "qmp"))
            sock.listen(0)
            other.connect(str(tmp_path / "qmp"))
            assert failure(tmp_path / "qmp").hint == "other clients are waiting for this socket"

    def test_another_client_is_there_already(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve()
        with Monitor(str(server.path)):
            error = failure(server.path, timeout=SHORT)
        assert error.message.endswith(": no greeting within 0.2 s")
        assert error.hint == "another client is connected to this socket, or it is not a QMP socket"

    @pytest.mark.parametrize(
        ("greeting", "said"),
        [
            (closes, "no greeting: the connection was closed"),
            (dies, "no greeting: the connection was closed"),
            (sends(b"HTTP/1.1 400 Bad Request\r\n"), "not JSON: 'HTTP/1.1 400 Bad Request'"),
            (sends(b"QEMU 10.0.2 monitor - type 'help'\r\n(qemu) "), "not JSON: 'QEMU 10.0.2 monitor - type 'help''"),
            (sends(b"\xff\x00\x1b[2J\xc3\n"), "not JSON: '\ufffd\\x00\\x1b[2J\ufffd'"),
            (sends(b"\n"), "not JSON: ''"),
            (chain(sends(b'{"QMP": {"ver'), closes), 'not JSON: \'{"QMP": {"ver\''),
            (sends(b"[1]\n"), "QMP message is not a JSON object"),
            (sends(line({"return": {}})), "'Greeting' object requires 'QMP' member"),
            (sends(line({"QMP": 1})), "'Greeting' member 'QMP' must be a JSON object"),
            (sends(line({"QMP": {"version": {}, "capabilities": []}})), "the greeting has no version of QEMU: None"),
            (
                sends(line({"QMP": {"version": {"qemu": {"major": "10"}}, "capabilities": []}})),
                "the greeting has no version of QEMU: {'major': '10'}",
            ),
            (sends(b"[" * 100_000 + b"\n"), "what came instead is nested too deeply"),
            (sends(b'{"a": ' + b"1" * 100_000 + b"}\n"), "not understood: Exceeds the limit"),
        ],
    )
    def test_what_is_no_greeting(self, serve: Callable[..., FakeQmp], greeting: Answer, said: str) -> None:
        server = serve(greeting=greeting)
        assert said in failure(server.path, timeout=ENOUGH).message

    def test_the_end_right_behind_a_greeting_is_the_end(
        self, serve: Callable[..., FakeQmp], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The library asserts that the session still runs when it has been greeted."""
        real = QMPClient.connect

        async def late(client: QMPClient, address: Any) -> None:
            await real(client, address)
            while client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
            assert client.runstate is Runstate.RUNNING

        monkeypatch.setattr(QMPClient, "connect", late)
        server = serve(greeting=chain(sends(GREETING), closes))
        assert failure(server.path, timeout=ENOUGH).message.endswith("no greeting: the connection was closed")

    def test_an_object_over_several_lines_is_put_down_to_pretty(self, serve: Callable[..., FakeQmp]) -> None:
        error = failure(serve(greeting=sends(b'{\r\n    "QMP": {\r\n')).path, timeout=ENOUGH)
        assert error.message.endswith("no greeting: it sends an object over several lines, as QEMU does with pretty=on")
        assert error.hint == "start QEMU with a monitor without it: -qmp unix:PATH,server=on,wait=off"

    def test_what_speaks_otherwise_is_said_to_be_no_qmp_socket(self, serve: Callable[..., FakeQmp]) -> None:
        error = failure(serve(greeting=sends(b"login: \n")).path, timeout=ENOUGH)
        assert error.hint.startswith("this is not a QMP socket but a human monitor, a serial line or the like")

    def test_a_line_without_end_takes_bounded_memory(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve(greeting=endless_line(100 * MIB))
        tracemalloc.start()
        try:
            assert failure(server.path).message.endswith("no greeting: what came instead is too long a line")
            assert tracemalloc.get_traced_memory()[1] < 48 * MIB
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (refuses("no"), "QEMU refuses 'qmp_capabilities': no"),
            (closes, "QEMU did not answer 'qmp_capabilities': the connection was closed"),
            (sends(b"what?\n"), "QEMU did not answer 'qmp_capabilities': what came instead is not JSON: 'what?'"),
            (ignores, "QEMU did not answer 'qmp_capabilities' within 0.2 s"),
        ],
    )
    def test_a_negotiation_that_fails(self, serve: Callable[..., FakeQmp], answer: Answer, said: str) -> None:
        server = serve({"qmp_capabilities": answer})
        error = failure(server.path, timeout=SHORT if answer is ignores else ENOUGH)
        assert said in error.message
        assert not error.hint


class TestLostSession:
    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (closes, "the connection was closed"),
            (dies, "the connection was closed"),
            (sends(b"(qemu) \n"), "what came instead is not JSON: '(qemu)'"),
            (chain(sends(b'{"return'), closes), "what came instead is not JSON: '{\"return'"),
            (sends(b"\xff\xfe\n"), "what came instead is not JSON: '"),
            (sends(line({"error": {"class": "GenericError", "desc": "JSON parse error"}})), "JSON parse error"),
            (sends(line({"return": {}, "id": []})), "unhashable type"),
            (sends(b"[" * 100_000 + b"\n"), "what came instead is nested too deeply"),
            (endless_line(100 * MIB), "what came instead is too long a line"),
        ],
    )
    def test_an_answer_that_is_none_ends_it(self, serve: Callable[..., FakeQmp], answer: Answer, said: str) -> None:
        server = serve({"stop": answer, "cont": returns({})})
        with Monitor(str(server.path), timeout=ENOUGH) as monitor:
            with pytest.raises(MachineError, match="QEMU did not answer 'stop': ") as caught:
                monitor.execute("stop")
            assert said in checked(caught.value, server.path).message
            with pytest.raises(MachineError, match="QEMU did not answer 'cont': ") as caught:
                monitor.execute("cont")
            assert said in caught.value.message
        assert server.commands == ["stop"]

    @pytest.mark.parametrize("content", [{}, {"error": {}}, {"error": "no"}, {"error": {"class": 1, "desc": 2}}])
    def test_a_malformed_answer_does_not(self, serve: Callable[..., FakeQmp], content: dict[str, Any]) -> None:
        server = serve({"stop": lambda request: [line({**content, "id": request.id})], "cont": returns(1)})
        with Monitor(str(server.path)) as monitor:
            with pytest.raises(MachineError, match="QEMU did not answer 'stop': what came instead is not understood"):
                monitor.execute("stop")
            assert monitor.execute("cont") == 1

    @pytest.mark.parametrize("value", [{}, [], "0", {"fdset-id": "0"}])
    def test_an_answer_of_another_type_does_not(self, serve: Callable[..., FakeQmp], value: object) -> None:
        with Monitor(str(serve({"add-fd": returns(value), "stop": returns(1)}).path)) as monitor:
            with pytest.raises(MachineError, match="QEMU's answer to 'add-fd' is malformed"):
                FdSet(monitor).add(0)
            assert monitor.execute("stop") == 1

    def test_an_unanswered_command(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": ignores})
        with Monitor(str(server.path)) as monitor:
            with pytest.raises(MachineError, match=r"QEMU did not answer 'stop' within 0\.2 s$") as caught:
                monitor.execute("stop", timeout=SHORT)
            checked(caught.value, server.path)

    def test_an_answer_to_something_else_is_none(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": renamed("other", returns(1)), "cont": returns(2)})
        with Monitor(str(server.path)) as monitor:
            with pytest.raises(MachineError, match="did not answer 'stop' within"):
                monitor.execute("stop", timeout=SHORT)
            assert monitor.execute("cont") == 2

    @pytest.mark.parametrize("count", [2, 3])
    def test_an_answer_that_comes_again_is_dropped(self, serve: Callable[..., FakeQmp], count: int) -> None:
        server = serve({"stop": chain(*[returns(1)] * count), "cont": returns(2)})
        with Monitor(str(server.path)) as monitor:
            assert (monitor.execute("stop"), monitor.execute("cont")) == (1, 2)

    def test_the_end_of_the_process_ends_a_call(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": dies})
        with Monitor(str(server.path), pidfd=server.pidfd) as monitor:
            for command in ("stop", "cont"):
                with pytest.raises(MachineError, match=f"did not answer '{command}': its process has ended$"):
                    monitor.execute(command)

    def test_the_end_of_the_process_is_enough(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": ignores})
        child = subprocess.Popen(["true"])
        pidfd = os.pidfd_open(child.pid)
        try:
            with Monitor(str(server.path)) as monitor:
                monitor.pidfd = pidfd
                with pytest.raises(MachineError, match=r"did not answer 'stop': its process has ended$"):
                    monitor.execute("stop")
        finally:
            os.close(pidfd)
            child.wait()

    def test_calls_on_a_closed_monitor_say_so(self, serve: Callable[..., FakeQmp]) -> None:
        monitor = Monitor(str(serve().path))
        monitor.close()
        monitor.close()
        with pytest.raises(MachineError, match="QEMU did not answer 'stop': the session is closed"):
            monitor.execute("stop")
        with pytest.raises(MachineError, match="the session is closed"), monitor.listen("STOP"):
            pass

    def test_close_does_not_wait_for_a_server_that_does_not_read(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": hangs})
        with Monitor(str(server.path), timeout=SHORT) as monitor:
            with pytest.raises(MachineError, match="did not answer 'stop' within"):
                monitor.execute("stop")
            with pytest.raises(MachineError, match="did not answer 'cont' within"):
                monitor.execute("cont", {"x": "x" * (4 * MIB)})


class TestEvents:
    def test_none_is_lost_between_command_and_wait(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": chain(sends(event("RTC_CHANGE"), event("STOP", {"n": 1})), returns({}))})
        with Monitor(str(server.path)) as monitor, monitor.listen("STOP", "SHUTDOWN") as events:
            monitor.execute("stop")
            assert (found := events.wait())["event"] == "STOP"
            assert found["data"] == {"n": 1}

    def test_one_that_comes_behind_the_answer_is_waited_for(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": chain(returns({}), slowly(sends(event("STOP"))))})
        with Monitor(str(server.path)) as monitor, monitor.listen("STOP") as events:
            monitor.execute("stop")
            assert events.wait()["event"] == "STOP"

    def test_earlier_ones_are_nobodys(self, serve: Callable[..., FakeQmp]) -> None:
        reader, writer = os.pipe()

        def stop(request: Request) -> Iterator[bytes]:
            yield from returns({})(request)
            os.read(reader, 1)  # its answer has been read
            yield event("STOP", 1)

        server = serve({"stop": stop, "cont": chain(sends(event("STOP", 2)), returns({}))})
        with Monitor(str(server.path)) as monitor:
            monitor.execute("stop")
            os.write(writer, b"!")
            assert select.select([monitor.sock], [], [], ENOUGH)[0]
            with monitor.listen("STOP") as events:
                monitor.execute("cont")
                assert events.wait()["data"] == 2
        os.close(reader)
        os.close(writer)

    def test_one_that_does_not_come(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"cont": chain(sends(event("A")), returns(1))})
        with Monitor(str(server.path)) as monitor, monitor.listen("B", "A") as events:
            with pytest.raises(MachineError, match=r"no event A or B within 0\.2 s$"):
                events.wait(SHORT)
            assert monitor.execute("cont") == 1
            assert events.wait()["event"] == "A"

    def test_one_that_cannot_come_any_more(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": chain(returns({}), closes), "cont": returns({})})
        with Monitor(str(server.path), timeout=ENOUGH) as monitor, monitor.listen("STOP") as events:
            monitor.execute("stop")
            with pytest.raises(MachineError, match=r"no event STOP: the connection was closed$"):
                events.wait()

    def test_a_flood_that_nobody_waits_for_is_not_collected(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": floods(2500, returns(1))})
        with Monitor(str(server.path)) as monitor:
            monitor.execute("stop")
            tracemalloc.start()
            try:
                assert monitor.execute("stop") == 1
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] < MIB
            finally:
                tracemalloc.stop()

    def test_of_a_flood_that_is_waited_for_the_newest_are_kept(self, serve: Callable[..., FakeQmp]) -> None:
        server = serve({"stop": floods(3000, chain(sends(event("STOP")), returns(1)), name="A")})
        with Monitor(str(server.path)) as monitor, monitor.listen("A", "STOP") as events:
            monitor.execute("stop")
            found = [events.wait()["event"] for _ in range(1000)]
            assert found == ["A"] * 999 + ["STOP"]
            with pytest.raises(MachineError):
                events.wait(SHORT)


class TestInterruption:
    def test_a_handler_that_raises_ends_the_call_and_not_the_session(
        self, serve: Callable[..., FakeQmp], on_signal: Callable[[object], None]
    ) -> None:
        server = serve({"stop": signals(signal.SIGUSR1), "cont": returns(1)})
        on_signal(interrupt)
        with Monitor(str(server.path)) as monitor:
            with pytest.raises(Interrupted):
                monitor.execute("stop", timeout=ENOUGH)
            assert monitor.execute("cont") == 1
        assert server.commands == ["stop", "cont"]

    def test_the_answer_to_an_interrupted_command_confuses_no_other(
        self, serve: Callable[..., FakeQmp], on_signal: Callable[[object], None]
    ) -> None:
        later = Later()
        stop = chain(later.keeps(returns("late")), signals(signal.SIGUSR1))
        server = serve({"stop": stop, "cont": later.before(returns("now"))})
        on_signal(interrupt)
        with Monitor(str(server.path)) as monitor:
            for _ in range(3):
                with pytest.raises(Interrupted):
                    monitor.execute("stop", timeout=ENOUGH)
            assert monitor.execute("cont") == "now"

    def test_wherever_the_signal_arrives_the_next_command_is_sent_and_gets_its_own_answer(
        self, serve: Callable[..., FakeQmp], on_signal: Callable[[object], None]
    ) -> None:
        server = serve({"stop": chain(returns("stop"), signals(signal.SIGUSR1)), "cont": returns("cont")})

        def stop(monitor: Monitor) -> None:
            monitor.execute("stop")
            signal.pause()  # the signal was not there yet, and raises here

        on_signal(interrupt)
        with Monitor(str(server.path)) as monitor:
            for _ in range(300):
                with pytest.raises(Interrupted):
                    stop(monitor)
                assert monitor.execute("cont") == "cont"
        assert server.commands == ["stop", "cont"] * 300

    def test_the_answer_after_a_time_out_confuses_no_other(self, serve: Callable[..., FakeQmp]) -> None:
        later = Later()
        server = serve({"stop": later.keeps(refuses("late")), "cont": later.before(returns("now"))})
        with Monitor(str(server.path)) as monitor:
            with pytest.raises(MachineError, match="within"):
                monitor.execute("stop", timeout=SHORT)
            assert monitor.execute("cont") == "now"

    def test_a_handler_that_does_not_raise_changes_nothing(
        self, serve: Callable[..., FakeQmp], on_signal: Callable[[object], None]
    ) -> None:
        heard: list[int] = []
        server = serve({"stop": chain(signals(signal.SIGUSR1), slowly(returns(1)))})
        on_signal(lambda signum, _frame: heard.append(signum))
        with Monitor(str(server.path)) as monitor:
            assert monitor.execute("stop") == 1
        assert heard == [signal.SIGUSR1]

    def test_control_c_while_it_waits_for_a_greeting(
        self, serve: Callable[..., FakeQmp], on_signal: Callable[[object], None]
    ) -> None:
        server = serve(greeting=in_turn(signals(signal.SIGUSR1), sends(GREETING)))
        on_signal(signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            Monitor(str(server.path), timeout=ENOUGH)
        with Monitor(str(server.path)) as monitor:
            assert monitor.version == (10, 0, 2)

    def test_a_command_and_the_wait_for_its_event_can_be_interrupted(
        self, serve: Callable[..., FakeQmp], on_signal: Callable[[object], None]
    ) -> None:
        server = serve(
            {"stop": chain(returns({}), signals(signal.SIGUSR1)), "cont": chain(sends(event("STOP")), returns(1))}
        )
        with Monitor(str(server.path)) as monitor, monitor.listen("STOP") as events:

            def stop() -> None:
                monitor.execute("stop")
                events.wait(ENOUGH)  # the signal finds it here, if the answer was read first

            on_signal(interrupt)
            with pytest.raises(Interrupted):
                stop()
            assert monitor.execute("cont") == 1
            assert events.wait()["event"] == "STOP"


COMMAND = """
import logging, sys
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.qemu.monitor import Monitor
logging.basicConfig(level=logging.getLevelName(sys.argv[1]))
for command in ("late", "stop"):
    with Monitor(sys.argv[2]) as monitor:
        try:
            monitor.execute(command, timeout=0.2)
        except MachineError:
            pass
"""


@pytest.mark.parametrize(("level", "heard"), [("WARNING", False), ("DEBUG", True)])
def test_the_library_is_heard_only_where_debug_messages_are(
    serve: Callable[..., FakeQmp], level: str, heard: bool
) -> None:
    server = serve({"late": renamed("other", returns(1)), "stop": sends(b"garbage\n")})
    command = [sys.executable, "-X", "dev", "-c", COMMAND, level, str(server.path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH, check=True)
    assert found.stdout == ""
    assert ("qemu.qmp" in found.stderr) == heard
    assert heard or found.stderr == ""
