"""``save --qmp`` with a QEMU that does at each command, in turn, what no QEMU does.

What a monitor makes of each kind of broken answer is held in test_monitor.py: here it is what becomes of the save. The
kinds that differ for a save all meet the commands that stop the guest and let it go on; all other commands, kinds and
shapes are dealt out to each other. With `make soak` everything meets everything.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.cli import Result, done, refused
from support.examples import few_examples, thorough
from support.fake_qmp import (
    MIB,
    Answer,
    FakeQmp,
    FdSets,
    Request,
    chain,
    closes,
    dies,
    endless_line,
    event,
    floods,
    ignores,
    refuses,
    renamed,
    returns,
    sends,
    slowly,
)
from support.faults import Forked
from support.pictures import content, draw
from support.streamwriter import DEVICES, device_bytes

import parallel_fixedram
from parallel_fixedram.machines.qemu import machine  # noqa: F401 - so that the command has it already
from parallel_fixedram.machines.qemu.session import Session

pytestmark = pytest.mark.slow  # whole commands
PICTURE = "AB0-" * 40
STATE = b"QEVM\0\0\0\3" + device_bytes(DEVICES) + b"\0"
HEAD = f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18} {'HVA':>18}  RO\r\n"
SHORT = 0.1
MOST_GROWTH = 64 * MIB
"""A line of 10 MiB is read, at most, and a few copies of it are made."""

Breaks = Callable[[Answer], Answer]


class FakeQemu:
    """What a QEMU answers whose guest has its main memory in this very process, and so in the server's as well."""

    def __init__(self) -> None:
        fd = os.memfd_create("ram")
        draw(fd, PICTURE)
        self._memory = mmap.mmap(fd, 0)
        os.close(fd)
        self._bytes = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        self._state = "running"
        sets = FdSets()
        self.answers: dict[str, Answer] = {
            **sets.answers,
            "qmp_capabilities": returns({}),
            "qom-list": returns([{"name": "type", "type": "string"}, {"name": "n", "type": "child<e1000e>"}]),
            "human-monitor-command": self._human,
            "query-migrate": returns({}),
            "query-status": self._status,
            "query-target": returns({"arch": "x86_64"}),
            "qom-get": self._property,
            "query-named-block-nodes": returns([]),
            "query-block": returns([]),
            "query-memdev": returns([{"id": "m", "size": len(self._memory)}]),
            "stop": self._becomes("paused", "STOP"),
            "cont": self._becomes("running", "RESUME"),
            "xen-save-devices-state": sets.writes("filename", STATE),
        }

    def _status(self, request: Request) -> Iterable[bytes]:
        return returns({"status": self._state, "running": self._state == "running"})(request)

    def _becomes(self, state: str, told_by: str) -> Answer:
        def become(request: Request) -> Iterable[bytes]:
            self._state = state
            return chain(sends(event(told_by)), returns({}))(request)

        return become

    def _property(self, request: Request) -> Iterable[bytes]:
        """Of QEMU's machine: nothing but its type is set."""
        return returns("pc-q35-10.0-machine" if request.arguments["property"] == "type" else "")(request)

    def _human(self, request: Request) -> Iterable[bytes]:
        size, address = len(self._memory), ctypes.addressof(self._bytes)
        table = f"{HEAD}                m    4 KiB  0x0 0x{size:016x} 0x{size:016x} 0x{address:016x}  rw\r\n"
        settings = "globals:\r\nsend-configuration: on\r\nsend-section-footer: on\r\n"
        answers = {"info ramblock": table, "info migrate": settings}
        return returns(answers.get(request.arguments["command-line"], ""))(request)

    def close(self) -> None:
        del self._bytes
        self._memory.close()

    def broken_at(self, number: int, breaks: Breaks) -> dict[str, Answer]:
        """The answers; that to the command of this number, counted from 0, is broken."""
        seen = iter(range(1 << 30))

        def count(healthy: Answer) -> Answer:
            return lambda request: (breaks(healthy) if next(seen) == number else healthy)(request)

        return {name: count(answer) for name, answer in self.answers.items()}


class Stage:
    """A folder, and saves into it."""

    def __init__(self, folder: Path, qemu: FakeQemu) -> None:
        self.qemu = qemu
        self.socket = folder / "qmp"
        self.folder = folder / "saved"
        self.folder.mkdir()
        self.file = self.folder / "vm.mr"
        with self.served(qemu.answers) as server, self.saving() as running:
            done(running.finish())
            assert parallel_fixedram.verify(str(self.file)).ok
            self.file.unlink()
            self.commands = [name for name, _ in server.requests]
            """All that a save sends, in their order."""

    @contextmanager
    def served(self, answers: dict[str, Answer]) -> Iterator[FakeQmp]:
        with FakeQmp(self.socket, answers) as server:
            yield server
        self.socket.unlink()

    def saving(self, impatient_at: int = -1, **options: Any) -> Forked:
        """The command; with the number of the command whose answer it does not wait long for."""

        def prepare() -> None:
            seen = iter(range(1 << 30))
            execute = Session.execute

            def hasty(session: Session, command: str, arguments: Any, timeout: float | None, fd: int | None) -> Any:
                if next(seen) == impatient_at:
                    timeout = SHORT
                return execute(session, command, arguments, timeout, fd)

            Session.execute = hasty

        return Forked("save", self.file, "--qmp", self.socket, prepare=prepare, **options)

    def steps(self, turn: int = 0, share: int = 1) -> Sequence[tuple[int, str]]:
        """Number and name of every ``share``-th command up to the one that lets the guest go on.

        Those of all turns together are all commands. What follows is courtesy.
        """
        steps = list(enumerate(self.commands))[: self.commands.index("cont") + 1]
        return steps[turn % share :: share]

    def decisive(self) -> Sequence[tuple[int, str]]:
        """Those around the time for which the guest is stopped."""
        return [(at, name) for at, name in self.steps() if name in ("stop", "xen-save-devices-state", "cont")]

    def broken(self, at: int, breaks: Breaks) -> tuple[Result, Forked, list[str]]:
        """A save with one answer broken: how it ended, and every command that came, the guardian's too."""
        with self.served(self.qemu.broken_at(at, breaks)) as server, self.saving(at) as running:
            result = running.finish()
            assert running.left() == []
            commands = [name for name, _ in server.requests]
        return result, running, commands


@pytest.fixture(scope="module")
def stage_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    qemu = FakeQemu()
    yield Stage(tmp_path_factory.mktemp("stage"), qemu)
    qemu.close()


@pytest.fixture
def stage(stage_of_all: Stage) -> Stage:
    """With an empty folder."""
    for path in stage_of_all.folder.iterdir():
        path.unlink()
    stage_of_all.socket.unlink(missing_ok=True)
    return stage_of_all


def test_a_save_from_a_fake_is_a_whole_one(stage: Stage) -> None:
    with stage.served(stage.qemu.answers), stage.saving() as running:
        done(running.finish())
        assert running.left() == []
    assert os.listdir(stage.folder) == [stage.file.name]
    assert parallel_fixedram.verify(str(stage.file)).ok
    parallel_fixedram.restore(str(stage.file), {"m": str(stage.folder / "ram")}, check_digests=True)
    assert (stage.folder / "ram").read_bytes() == content(PICTURE)
    assert stage.commands.count("stop") == stage.commands.count("cont") == 1
    assert stage.commands[-1] == "remove-fd"


def unanswered(healthy: Answer) -> Answer:
    """The command is carried out, and nobody hears of it."""

    def swallow(request: Request) -> Iterable[bytes]:
        list(healthy(request))
        return []

    return swallow


FAILING: dict[str, Breaks] = {
    "an error": lambda _: refuses("no"),
    "garbage": lambda _: sends(b"garbage\r\n"),
    "another kind of message": lambda _: sends(b'{"what": 1}\r\n[]\r\n'),
    "half a line, then the end": lambda _: chain(sends(b'{"ret'), closes),
    "the end": lambda _: closes,
    "death": lambda _: dies,
    "silence": lambda _: ignores,
    "a line without an end": lambda _: endless_line(100 * MIB),
    "no answer, although it is done": unanswered,
    "an answer to something else": lambda healthy: renamed("other", healthy),
}
CARRIED_OUT = ("no answer, although it is done", "an answer to something else")
"""With the others the command is not carried out: a guest that was not stopped need not be let go on."""
DIFFERENT = ("an error", "the end", "no answer, although it is done")
"""For a save there are no more kinds: the session goes on, it does not, or nobody knows what was done."""
GONE = ("half a line, then the end", "the end", "death")
"""After these there is nobody whom a request could reach."""


@pytest.mark.parametrize("how", FAILING)
def test_a_broken_answer_to_any_command_ends_the_save_in_one_line(stage: Stage, how: str) -> None:
    share = 1 if thorough() else 12
    steps = stage.steps(list(FAILING).index(how), share)
    if how in DIFFERENT and not few_examples():
        steps = sorted(
            {*steps, *stage.steps(DIFFERENT.index(how), 1 if thorough() else len(DIFFERENT)), *stage.decisive()}
        )
    for at, name in steps:
        result, running, commands = stage.broken(at, FAILING[how])
        refused(result, 4, "")
        assert "unexpected" not in result.err
        assert os.listdir(stage.folder) == [], name
        assert running.growth < MOST_GROWTH
        assert commands[: at + 1] == stage.commands[: at + 1]
        if "stop" in commands and how not in GONE and (name != "stop" or how in CARRIED_OUT):
            assert "cont" in commands[commands.index("stop") :], name


@pytest.mark.parametrize("how", ["an error", "garbage", "the end", "silence"])
def test_a_save_that_is_done_does_not_fail_any_more(stage: Stage, how: str) -> None:
    at = len(stage.commands) - 1
    result, _, commands = stage.broken(at, FAILING[how])
    done(result)
    assert commands == stage.commands
    assert parallel_fixedram.verify(str(stage.file)).ok


@pytest.mark.parametrize(
    "breaks", [slowly, lambda healthy: floods(500, healthy)], ids=["slow bytes", "a flood of events"]
)
def test_a_strange_answer_to_any_command_is_as_good_as_another(stage: Stage, breaks: Breaks) -> None:
    answers = {name: breaks(answer) for name, answer in stage.qemu.answers.items()}
    with stage.served(answers) as server, stage.saving() as running:
        done(running.finish())
        assert running.growth < MOST_GROWTH
        assert [name for name, _ in server.requests] == stage.commands


SHAPES = [
    None,
    {},
    [],
    "",
    7,
    True,
    [None],
    [[]],
    {"status": 1},
    {"return": []},
    "x" * 1000,
    "ü\n",
    {"blocked-reasons": 1},
]


def accepted(name: str, value: object) -> bool:
    """Whether a value is a good answer to a command."""
    match name:
        case "qmp_capabilities" | "stop" | "cont" | "xen-save-devices-state":
            return True
        case "human-monitor-command":
            return isinstance(value, str)
        case "qom-list" | "query-memdev" | "query-named-block-nodes" | "query-block":
            return value == []
        case "query-migrate":
            return isinstance(value, dict) and not value.get("blocked-reasons")
        case "qom-get":
            return value == ""
    return False


@pytest.mark.parametrize(("turn", "shape"), list(enumerate(SHAPES)), ids=lambda value: repr(value)[:20])
def test_an_answer_of_a_wrong_shape_ends_the_save_in_one_line(stage: Stage, turn: int, shape: object) -> None:
    """Each command returns the same thing; some may."""
    for at, name in stage.steps(turn, 1 if thorough() else 12 if few_examples() else 6):
        if name in ("stop", "cont", "qmp_capabilities", "xen-save-devices-state"):
            continue  # nobody looks at what they return
        result, _, commands = stage.broken(at, lambda _: returns(shape))
        if result.code == 0:
            assert accepted(name, shape), (name, shape)
            stage.file.unlink()
            continue
        refused(result, 4, "")
        assert "unexpected" not in result.err
        assert os.listdir(stage.folder) == []
        if "stop" in commands:
            assert commands.count("cont") == 1


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "cannot read QEMU's list of RAMBlocks"),
        ("not a table\r\n" * 100, "cannot read QEMU's list of RAMBlocks"),
        (HEAD, "no RAMBlock of main memory"),
        (f"{HEAD}  rom  4 KiB  0x0 0x1000 0x1000 0x1000\r\n", "no RAMBlock of main memory"),
        (f"{HEAD}  m  4 KiB  0x0 0x1000 0x1000 0x1000\r\n\r\n", "list of RAMBlocks: ''"),
        (f"{HEAD}  m  4 KiB  0x0 0x1000 0x1000\r\n", "cannot read QEMU's list of RAMBlocks"),
        (f"{HEAD}  m  0 KiB  0x0 0x1000 0x1000 0x1000\r\n", "cannot read QEMU's list of RAMBlocks"),
        (f"{HEAD}  m  {'9' * 5000} KiB  0x0 0x1000 0x1000 0x1000\r\n", "cannot read QEMU's list of RAMBlocks"),
        (f"{HEAD}  m  4 KiB  0x0 0x{'f' * 17} 0x1000 0x1000\r\n", "cannot read QEMU's list of RAMBlocks"),
        (f"{HEAD}  m  4 KiB  0x0 0x0 0x0 0x1000\r\n", "impossible RAMBlocks: block 'm': used_length must be positive"),
        (f"{HEAD}  m  4 KiB  0x0 0x1001 0x1001 0x1000\r\n", "impossible RAMBlocks: block 'm': size 4097"),
        (f"{HEAD}  m  4 KiB  0x0 0x2000 0x1000 0x1000\r\n", "impossible RAMBlocks: block 'm': max_length 4096"),
        (f"{HEAD}  m  2 GiB  0x0 0x1000 0x1000 0x1000\r\n", "impossible RAMBlocks: block 'm': size 4096"),
        (HEAD + "  m  4 KiB  0x0 0x1000 0x1000 0x1000\r\n" * 2, "two blocks are named 'm'"),
        (f"{HEAD}  m  4 KiB  0x0 0x1000 0x1000 0x1000\r\n  mü  4 KiB  0x0 0x1000 0x1000 0x1000\r\n", "printable"),
        (f"{HEAD}  m  4 KiB  0x0 0x1000 0x1000 0x1000\r\n  {'n' * 256}  4 KiB  0x0 0x1000 0x1000 0x1000\r\n", "long"),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_a_list_of_blocks_that_cannot_be_is_refused(stage: Stage, table: str, said: str) -> None:
    at = stage.commands.index("query-memdev") + 1
    result, _, _ = stage.broken(at, lambda _: returns(table))
    refused(result, 4, said)
    assert os.listdir(stage.folder) == []


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"QEVM",
        b"QEVM\0\0\0\3",
        b"QEVM\0\0\0\3\0",
        b"QEVM\0\0\0\2" + STATE[8:],
        STATE[:-1],
        STATE[:-2] + b"\0",
        STATE + b"x\0",
    ],
)
def test_a_device_state_that_is_none_is_refused_and_the_guest_goes_on(stage: Stage, written: bytes) -> None:
    sets = FdSets()
    answers = {**stage.qemu.answers, **sets.answers, "xen-save-devices-state": sets.writes("filename", written)}
    with stage.served(answers) as server, stage.saving() as running:
        refused(running.finish(), 4, "device state")
        assert server.commands.count("cont") == 1
    assert os.listdir(stage.folder) == []


def told(values: dict[str, object], other: Answer, argument: str) -> Answer:
    """Answers by the value of an argument; ``other`` for those that are not there."""

    def tell(request: Request) -> Iterable[bytes]:
        asked = request.arguments.get(argument)
        return (returns(values[asked]) if asked in values else other)(request)

    return tell


PEERS = "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n \\ n: index=0,type="
CANNOT_BE_SAVED: dict[str, tuple[str, str, dict[str, object], str]] = {
    "vhost-user": (
        "human-monitor-command",
        "command-line",
        {"info network": f"{PEERS}vhost-user,vhost-user0 to c\r\n"},
        "netdev 'n' is vhost-user: a vhost-user back-end holds state",
    ),
    "passt, by vhost-user": (
        "human-monitor-command",
        "command-line",
        {"info network": f"{PEERS}passt,vhost-user,connected to pid 4711\r\n"},
        "netdev 'n' is vhost-user: a vhost-user back-end holds state",
    ),
    "vDPA": (
        "human-monitor-command",
        "command-line",
        {"info network": f"{PEERS}vhost-vdpa,vhost-vdpa0\r\n"},
        "netdev 'n' is vhost-vdpa: a vDPA device holds state, and writes to guest memory, outside QEMU\n",
    ),
    "a vDPA device": (
        "qom-list",
        "path",
        {"/machine/peripheral": [{"name": "blk", "type": "child<vhost-vdpa-device-pci>"}]},
        "device 'blk' is a vhost-vdpa-device-pci: a vDPA device holds state",
    ),
    "a device of another QEMU's user-space VFIO": (
        "qom-list",
        "path",
        {"/machine/peripheral-anon": [{"name": "device[0]", "type": "child<vfio-user-pci>"}]},
        "device 'device[0]' is a vfio-user-pci: VFIO devices save their state in steps",
    ),
    "a confidential guest": (
        "qom-get",
        "property",
        {"confidential-guest-support": "/objects/sev0"},
        "the guest is confidential ('/objects/sev0'): its memory cannot be read from outside\n",
    ),
    "a backend of guest-memfd": (
        "qom-list",
        "path",
        {"/objects": [{"name": "g", "type": "child<memory-backend-guest-memfd>"}]},
        "memory-backend-guest-memfd 'g' is guest-memfd: its memory cannot be read from outside\n",
    ),
    "another target": ("query-target", "", {}, "a guest of target 'riscv64' cannot be saved: only x86_64, i386"),
}


@pytest.mark.parametrize("name", CANNOT_BE_SAVED)
def test_a_guest_that_no_file_can_hold_is_refused_before_it_is_stopped(stage: Stage, name: str) -> None:
    command, argument, values, said = CANNOT_BE_SAVED[name]
    answer = told(values, stage.qemu.answers[command], argument) if values else returns({"arch": "riscv64"})
    with stage.served({**stage.qemu.answers, command: answer}) as server, stage.saving() as running:
        refused(running.finish(), 4, said, hint="")
        assert "stop" not in server.commands
    assert os.listdir(stage.folder) == []


@pytest.mark.parametrize("on", [True, False])
def test_a_backend_out_of_reach_is_refused_by_name(stage: Stage, on: bool) -> None:
    """As QEMU after 10.0 has it."""
    objects = {
        "/objects": [{"name": "m", "type": "child<memory-backend-memfd>"}, {"name": "r", "type": "child<rng-random>"}],
        "/objects/m": [{"name": "share", "type": "bool"}, {"name": "guest-memfd", "type": "bool"}],
    }
    answers = {
        **stage.qemu.answers,
        "qom-list": told(objects, stage.qemu.answers["qom-list"], "path"),
        "qom-get": told({"guest-memfd": on}, stage.qemu.answers["qom-get"], "property"),
    }
    with stage.served(answers), stage.saving() as running:
        if on:
            refused(running.finish(), 4, "memory-backend-memfd 'm' is guest-memfd: its memory cannot be read", "")
        else:
            done(running.finish())


@pytest.mark.parametrize("asked", ["info migrate", "info migrate -a"])
def test_settings_are_found_wherever_a_qemu_shows_them(stage: Stage, asked: str) -> None:
    shown = "globals:\r\nstore-global-state: on\r\nsend-configuration: on\r\nsend-section-footer: off\r\n"
    answer = told({"info migrate": "", asked: shown}, stage.qemu.answers["human-monitor-command"], "command-line")
    with stage.served({**stage.qemu.answers, "human-monitor-command": answer}), stage.saving() as running:
        refused(running.finish(), 4, "QEMU runs with migration.send-section-footer=off", "leave out -global")


def test_a_state_in_which_there_is_no_guest_is_refused(stage: Stage) -> None:
    answers = {**stage.qemu.answers, "query-status": returns({"status": "inmigrate"})}
    with stage.served(answers) as server, stage.saving() as running:
        refused(running.finish(), 4, "'inmigrate'")
        assert "stop" not in server.commands


def test_another_process_than_the_one_behind_the_socket_is_refused(stage: Stage) -> None:
    def forgets(request: Request) -> Iterable[bytes]:
        os.close(request.fds.pop())
        return returns({"fdset-id": 0, "fd": 9})(request)

    answers = {**stage.qemu.answers, "add-fd": forgets, "remove-fd": returns({})}
    with stage.served(answers), stage.saving() as running:
        refused(running.finish(), 4, "cannot be found", "rights of a debugger")
