"""Guest agents that do what no agent does, or not to order; and what clones are told through them."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_agent import Answer, FakeAgent, closes, in_turn, line, refuses, returns, sends

from parallel_fixedram.boot.agents import agents_of, run_in_all, set_clocks
from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.in_clones import InClones
from parallel_fixedram.core.clone_options import Identity
from parallel_fixedram.core.errors import MachineError, RequestError
from parallel_fixedram.core.reports.boot import GuestReport
from parallel_fixedram.machines.qemu.guest_agent import GuestAgent

PORT = "-chardev socket,path={},server=on,wait=off,id=q -device virtserialport,chardev=q,name=org.qemu.guest_agent.0"
IN_JSON = '{"driver":"virtserialport","chardev":"q","name":"org.qemu.guest_agent.0"}'
SECOND = 10**9
ENDED = {"exited": True, "exitcode": 0}
Serve = Callable[..., FakeAgent]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts an agent: ``serve({"guest-exec": ...}, number=0)``; they end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda answers, number=0, **options: stack.enter_context(
            FakeAgent(tmp_path / f"agent-{number}", answers, **options)
        )


@contextlib.contextmanager
def session(*fakes: FakeAgent, timeout: float = 30.0) -> Iterator[list[GuestAgent]]:
    """A session with each, greeted."""
    with contextlib.ExitStack() as stack:
        agents = [
            stack.enter_context(GuestAgent(fake.path, f"clone {number}", timeout=timeout))
            for number, fake in enumerate(fakes)
        ]
        for agent in agents:
            agent.greeted(agent.greet())
        yield agents


def runs(status: Answer | None = None) -> dict[str, Answer]:
    """What an agent answers to a command, which succeeds unless ``status`` says otherwise."""
    return {"guest-exec": returns({"pid": 5}), "guest-exec-status": status or returns(ENDED)}


@pytest.mark.parametrize(
    "before",
    [
        b'{"return": 7}\n',
        b'17}}\n{"error": {"desc": "x"}}\n',
        b'\xff{"return": 1}\n',
        b"\xff\xff\xff",
        b'\xff{"return": ',
        b"\xffgarbage\n\n",
    ],
)
def test_what_an_earlier_session_left_on_the_line_is_dropped(serve: Serve, before: bytes) -> None:
    fake = serve({"guest-get-time": returns(3)}, before=before)
    with session(fake) as (agent,):
        agent.ask("guest-get-time")
        assert agent.answer() == 3


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (sends(b""), "it does not answer within 0.2 s"),
        (sends(b'{"return": '), "it does not answer within 0.2 s"),
        (closes, "it does not answer: the connection was closed"),
        (refuses("has been disabled\nby \x1b[0m"), r"it refuses: has been disabled\nby \x1b[0m"),
        (sends(b"no\n"), "its answer is malformed: no"),
        (sends(b"[1]\n"), "its answer is malformed: [1]"),
        (sends(b'{"error": {}}\n'), 'its answer is malformed: {"error": {}}'),
        (sends(b"\xfe\n"), "its answer is malformed: \ufffd"),
        (sends(b"[" * 100_000 + b"\n"), "its answer is malformed: [[["),
        (lambda _: b"x" * (65 << 20), "its answer has more than 64 MiB"),
    ],
)
def test_no_answer_or_a_strange_one_is_one_line_that_names_the_clone(serve: Serve, answer: Answer, why: str) -> None:
    with session(serve({"guest-ping": answer}), timeout=0.2 if "within" in why else 30.0) as (agent,):
        agent.ask("guest-ping")
        with pytest.raises(MachineError) as caught:
            agent.answer()
    assert caught.value.message.startswith("clone 0: guest agent '")
    assert why in caught.value.message
    assert caught.value.message.isprintable()


def test_an_agent_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"^clone 3: guest agent '.*/no': cannot connect: no such file"):
        GuestAgent(str(tmp_path / "no"), "clone 3")


def test_clocks_that_are_behind_are_set_to_the_time_and_others_stay(serve: Serve) -> None:
    now = time.time_ns()
    behind, ahead = (
        serve({"guest-get-time": returns(now + seconds * SECOND), "guest-set-time": returns({})}, number)
        for number, seconds in enumerate((-3600, 3600))
    )
    with session(behind, ahead) as agents:
        assert set_clocks(agents) >= 3600
    assert [name for name, _ in ahead.commands] == ["guest-get-time"]
    assert [name for name, _ in behind.commands] == ["guest-get-time", "guest-set-time"]
    assert now <= behind.commands[1][1]["time"] <= time.time_ns()


def test_a_command_is_run_in_each_clone_under_its_number_until_it_has_ended(serve: Serve) -> None:
    slow = in_turn(returns({"exited": False}), returns({"exited": False}), returns(ENDED))
    fakes = [serve(runs(status), number) for number, status in enumerate((slow, returns(ENDED)))]
    with session(*fakes) as agents:
        run_in_all(agents, "hostname clone-{n}; echo ${x}")
    for number, (fake, looks) in enumerate(zip(fakes, (3, 1), strict=True)):
        (name, arguments), *rest = fake.commands
        assert (name, arguments["path"]) == ("guest-exec", "/bin/sh")
        assert arguments["arg"] == ["-c", f"hostname clone-{number}; echo ${{x}}"]
        assert rest == [("guest-exec-status", {"pid": 5})] * looks


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"exitcode": 7}, "the command ended with exit code 7"),
        ({"exitcode": 1, "err-data": base64.b64encode(b"first\nno \x1b[1m\n\n").decode()}, "exit code 1: no \\x1b[1m"),
        ({"exitcode": 1, "err-data": "!"}, "exit code 1"),
        ({"exitcode": 1, "err-data": 3}, "exit code 1"),
        ({"signal": 9}, "the command was ended by signal 9"),
        ({}, "its answer is malformed: {'exited': True}"),
    ],
)
def test_a_command_that_fails_names_the_clone_and_how_it_ended(
    serve: Serve, status: Mapping[str, object], why: str
) -> None:
    fakes = [serve(runs(), 0), serve(runs(returns({"exited": True, **status})), 1)]
    with session(*fakes) as agents, pytest.raises(MachineError) as caught:
        run_in_all(agents, "x")
    assert caught.value.message.startswith(f"clone 1: guest agent '{fakes[1].path}': ")
    assert caught.value.message.endswith(why)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
STATUS = st.fixed_dictionaries({}, optional=dict.fromkeys(("exited", "exitcode", "signal", "err-data"), JSON))


class Saying(GuestAgent):
    """An agent whose answers are these, in turn; the last one stays."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self._name = "clone 0"

    def close(self) -> None: ...

    def greet(self) -> int:
        return 0

    def greeted(self, number: int) -> None: ...

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> None: ...

    def answer(self) -> Any:
        return json.loads(json.dumps(self._answers.pop(0)))


@given(JSON | st.sampled_from([-1, 10**400, -(10**400), 1 << 63]), JSON)
def test_whatever_a_guest_says_of_its_clock_is_believed_or_an_error(there: object, answer: object) -> None:
    with contextlib.suppress(MachineError):
        assert set_clocks([Saying(there, answer)]) >= 0


@given(st.builds(lambda pid: {"pid": pid}, JSON) | JSON, STATUS | JSON)
def test_whatever_a_guest_says_of_a_command_is_believed_or_an_error(pid: object, status: object) -> None:
    with contextlib.suppress(MachineError):
        run_in_all([Saying(pid, status, ENDED)], "x")


class Monitors:
    """The monitor of a QEMU whose agent's port is open or not."""

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open

    def execute(self, command: str) -> list[dict[str, object]]:
        assert command == "query-chardev"
        return [{"label": "other", "frontend-open": True}, {"label": "q", "frontend-open": self._is_open}]


def parsed(text: str, *more: str) -> CommandLine:
    return CommandLine.parse(["qemu", *text.split(), *more])


def carried_out(
    line: CommandLine, *, command: str = "", status: str = "running", is_open: bool = True
) -> Sequence[str]:
    """The notes of one clone."""
    guest = GuestReport(name="x/0", pid=1, qmp="", log="", status=status)
    monitor: Any = Monitors(is_open=is_open)
    return InClones.of([line], command, Identity.NEW).carry_out([guest], [monitor])


def test_why_clocks_are_not_set_is_one_note(serve: Serve, tmp_path: Path) -> None:
    fake = serve({})
    port = PORT.format(fake.path)
    for found, why in (
        (carried_out(parsed("-m 1G")), "the command line has no guest agent on a socket"),
        (carried_out(parsed(port), status="paused"), "they do not run"),
        (carried_out(parsed(f"{port} -rtc base=2001-01-01")), "-rtc gives them a time other than the host's"),
        (carried_out(parsed(port), is_open=False), "clone 0: no guest agent runs in it, its port is not open"),
        (carried_out(parsed(port)), f"clone 0: guest agent '{fake.path}': it refuses: The command guest-get-time has"),
    ):
        assert len(found) == 1
        assert found[0].startswith(f"the clocks of clones go on from the time of the save: {why}")
    line = parsed(PORT.format(tmp_path / "no"))
    assert InClones.of([line], "", Identity.SAME).carry_out([], []) == ()


def test_a_command_that_cannot_be_run_is_an_error(serve: Serve) -> None:
    port = PORT.format(serve({}).path)
    with pytest.raises(RequestError, match="the command line has no guest agent on a socket") as caught:
        carried_out(parsed("-m 1G"), command="x")
    assert "virtserialport" in caught.value.hint
    with pytest.raises(RequestError, match="clones that do not run cannot run a command"):
        carried_out(parsed(f"{port} -S"), command="x")
    with pytest.raises(MachineError, match="clone 0: it is 'shutdown', and cannot run a command"):
        carried_out(parsed(port), command="x", status="shutdown")
    with pytest.raises(MachineError, match="clone 0: no guest agent runs in it"):
        carried_out(parsed(port), command="x", is_open=False)
    with pytest.raises(MachineError, match="it refuses: The command guest-exec has not been found"):
        carried_out(parsed(port), command="x")


def test_a_clock_that_cannot_be_set_does_not_keep_a_command_from_running(serve: Serve) -> None:
    """And an answer that comes too late is not taken for another one."""
    late = line({"return": 1})
    fake = serve({**runs(), "guest-get-time": lambda _: line({"return": "noon"}) + late})
    (note,) = carried_out(parsed(PORT.format(fake.path)), command="x")
    assert note.endswith("its answer is malformed: noon")
    assert fake.commands[-1][0] == "guest-exec-status"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PORT.format("/a"), "/a"),
        (PORT.format("/a,,b"), "/a,b"),
        (PORT.format("/a").replace("server=on", "server"), "/a"),
        (PORT.format("/a").replace("guest_agent.0", "guest_agent.1"), "/a"),
        (f"-chardev socket,path=/a,server=on,id=q -device {IN_JSON}", "/a"),
        (PORT.format("/a").replace("socket,path=/a", "socket,host=h,port=1"), ""),
        (PORT.format("/a").replace("server=on", "server=off"), ""),
        (PORT.format("/a").replace("socket", "pipe"), ""),
        (PORT.format("/a").replace("org.qemu.guest_agent", "com.redhat.spice"), ""),
        (PORT.format("/a").replace("id=q ", "id=other "), ""),
        ("-device virtserialport -chardev null,id=q", ""),
    ],
)
def test_an_agent_is_a_port_of_its_name_on_a_socket_that_qemu_listens_on(text: str, found: str) -> None:
    sockets = InClones.of([parsed(text)], "", Identity.NEW).sockets
    assert [each.path for each in sockets] == ([found] if found else [])


def test_agents_of_names_the_clone_that_has_none(serve: Serve) -> None:
    sockets = InClones.of([parsed(PORT.format(serve({}, 0).path))], "", Identity.NEW).sockets
    monitors: list[Any] = [Monitors(is_open=True), Monitors(is_open=False)]
    with (
        pytest.raises(MachineError, match="clone 1: no guest agent runs in it"),
        agents_of([*sockets, *sockets], monitors),
    ):
        pass
