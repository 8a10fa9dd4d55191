"""Guests that live on: found by their run folders, ended only if they are the very processes that were handed over."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.cli import call, done, refused, without_proc
from support.fake_qmp import Answer, FakeQmp, dies, ignores
from support.somebody_else import NOBODY

from parallel_fixedram import list_guests, stop_guests
from parallel_fixedram.boot import living as guests
from parallel_fixedram.boot.run_folder import PREFIX, FleetFolder, new_record
from parallel_fixedram.core.errors import MachineError, RequestError
from parallel_fixedram.host.processes.identity import ProcessIdentity, Whereabouts, identity_of

Start = Callable[..., FakeQmp]


@pytest.fixture
def place(run_folders_in: Callable[[Path], None]) -> Iterator[Path]:
    """The only place where run folders are looked for; its name is short enough for sockets."""
    with TemporaryDirectory() as folder:
        run_folders_in(Path(folder))
        yield Path(folder)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Starts a process that answers ``quit``, and hands it over as guest ``NAME/N`` of ``/vm.mr``."""
    with ExitStack() as stack:

        def started(
            name: str = "one",
            number: int = 0,
            *,
            answer: Answer = dies,
            greeting: Answer | None = None,
            change: Callable[[ProcessIdentity], ProcessIdentity] = lambda process: process,
        ) -> FakeQmp:
            folder = FleetFolder(str(place / f"{PREFIX}{name}")).of(number)
            os.makedirs(os.path.dirname(folder.path), exist_ok=True)
            folder.make()
            server = stack.enter_context(FakeQmp(Path(folder.socket), {"quit": answer}, greeting=greeting))
            Path(folder.log).write_text("qemu-system-x86_64: warning: slow\nqemu-system-x86_64: cannot go on\n")
            folder.write_pid(server.pid)
            folder.write_record(new_record(change(identity_of(server.pid)), "/vm.mr"))
            return server

        yield started


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not answer is not waited for."""
    monkeypatch.setattr(guests, "ANSWER_SECONDS", 0.01)


def lives(server: FakeQmp) -> bool:
    return isinstance(reached(identity_of(server.pid)), int)


def reached(process: ProcessIdentity) -> int | Whereabouts:
    found = process.reach()
    if not isinstance(found, Whereabouts):
        os.close(found)
    return found


def test_a_guest_is_listed_with_what_is_needed_to_reach_it(start: Start, place: Path) -> None:
    server = start()
    (guest,) = list_guests().guests
    folder = place / f"{PREFIX}one" / "0"
    assert (guest.name, guest.pid, guest.file) == ("one/0", server.pid, "/vm.mr")
    assert (guest.qmp, guest.log) == (str(folder / "qmp"), str(folder / "log"))
    assert guest.memory is not None
    assert guest.memory > 0
    assert lives(server)
    assert sorted(os.listdir(folder)) == ["guest", "log", "pid", "qmp"]
    assert server.commands == []  # a list asks nobody anything


def test_the_list_shows_the_line_that_ends_a_guest(start: Start) -> None:
    server = start()
    out = done(call("guests")).out
    assert out.startswith(f"one/0: pid {server.pid}, ")
    assert "  end   parallel-fixedram guests stop one/0\n" in out
    report = done(call("guests", "--json")).json
    assert (report["verb"], [each["name"] for each in report["guests"]]) == ("guests", ["one/0"])
    assert done(call("guests", "stop", "one/0")).out == f"one/0: process {server.pid} ended by quit\n"
    assert done(call("guests")).out == "no guest that restore or clone has started runs\n"


def test_overlays_in_the_run_folder_go_with_their_guest_and_nothing_else_does(start: Start, place: Path) -> None:
    server = start()
    folder = place / f"{PREFIX}one" / "0"
    overlays = ["disk0-a.qcow2", "disk0-a.qcow2.fixedram-20260101-000000.qcow2", "disk12-b.qcow2"]
    for name in (*overlays, "disk.qcow2", "mine.img"):
        (folder / name).touch()
    assert stop_guests(["one"]).stopped[0].pid == server.pid
    assert sorted(os.listdir(folder)) == ["disk.qcow2", "mine.img"]


def test_a_guest_is_told_to_quit_and_its_folder_goes(start: Start, place: Path) -> None:
    server = start()
    (stopped,) = stop_guests(["one/0"]).stopped
    assert (stopped.name, stopped.pid, stopped.how) == ("one/0", server.pid, "quit")
    assert server.commands == ["quit"]
    assert os.listdir(place) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("deaf", [{"greeting": ignores}, {"answer": ignores}], ids=["greeting", "quit"])
def test_a_guest_whose_monitor_is_busy_gets_sigterm(start: Start, place: Path, deaf: dict[str, Answer]) -> None:
    server = start(**deaf)
    (stopped,) = stop_guests(["one"]).stopped
    assert (stopped.pid, stopped.how) == (server.pid, "SIGTERM")
    assert os.listdir(place) == []


@pytest.mark.usefixtures("impatient")
def test_a_guest_that_stands_still_is_killed(start: Start, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "ENDING_SECONDS", 0.01)
    server = start()
    os.kill(server.pid, signal.SIGSTOP)
    (stopped,) = stop_guests(everything=True).stopped
    assert (stopped.pid, stopped.how) == (server.pid, "SIGKILL")
    assert os.listdir(place) == []


def test_a_guest_that_ends_by_itself_meanwhile_is_no_failure(start: Start, place: Path) -> None:
    server = start()
    with guests.Survey() as survey:
        server.kill()
        (stopped,) = guests.stop(survey.guests)
    assert (stopped.how, os.listdir(place)) == ("itself", [])


def test_what_a_guest_said_that_has_ended_is_told_once_and_its_folder_goes(start: Start, place: Path) -> None:
    start().kill()
    alive = start("two")
    out = done(call("guests")).out
    assert "one/0: process" in out.splitlines()[0]
    assert out.splitlines()[0].endswith("had ended by itself; QEMU: cannot go on")
    assert os.listdir(place) == [f"{PREFIX}two"]
    assert "one/0" not in done(call("guests")).out
    assert lives(alive)


def test_to_end_a_guest_that_has_ended_is_done(start: Start, place: Path) -> None:
    start().kill()
    assert "one/0: process" in done(call("guests", "stop", "one/0")).out
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda process: replace(process, started=process.started - 1), Whereabouts.ENDED),
        (lambda process: replace(process, boot="another"), Whereabouts.ENDED),
        (lambda process: replace(process, namespace="pid:[1]"), Whereabouts.ELSEWHERE),
    ],
    ids=["the number was given again", "another boot", "another pid namespace"],
)
def test_a_process_that_is_not_the_guest_is_never_ended(
    start: Start, place: Path, change: Callable[[ProcessIdentity], ProcessIdentity], found: Whereabouts
) -> None:
    server = start(change=change)
    assert reached(change(identity_of(server.pid))) is found
    report = stop_guests(everything=True)
    assert (report.guests, report.stopped) == ((), ())
    assert (len(report.ended), len(os.listdir(place))) == ((1, 0) if found is Whereabouts.ENDED else (0, 1))
    assert lives(server)
    assert server.commands == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_folders_of_another_user_are_left_alone(start: Start, place: Path) -> None:
    server = start()
    os.chown(place / f"{PREFIX}one", NOBODY, NOBODY)
    assert stop_guests(everything=True).stopped == ()
    with pytest.raises(RequestError, match="there is no guest"):
        stop_guests([str(place / f"{PREFIX}one")])
    assert lives(server)
    assert os.listdir(place / f"{PREFIX}one") == ["0"]


def test_a_folder_with_which_a_command_is_at_work_is_left_to_it(place: Path) -> None:
    fleet = FleetFolder(None)
    fleet.make()
    fleet.of(0).make()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(fleet.of(0).socket)
        report = list_guests()
        assert report.notes == (f"a command is still working with {fleet.name!r}",)
        for name in (fleet.name, f"{fleet.name}/0"):
            with pytest.raises(MachineError, match="still working"):
                stop_guests([name])
        assert os.listdir(fleet.of(0).path) == ["qmp"]
        fleet.let_go()  # as when it is killed
        assert list_guests().notes == ()
    assert os.listdir(place) == []


def test_a_log_that_was_kept_and_folders_of_others_stay(place: Path) -> None:
    kept = place / f"{PREFIX}failed" / "0"
    kept.mkdir(parents=True)
    (kept / "log").write_text("qemu: no\n")
    (place / f"{PREFIX}demo" / "sub").mkdir(parents=True)
    (place / "0").mkdir()
    (place / f"{PREFIX}file").touch()
    before = sorted(place.rglob("*"))
    assert list_guests().guests == ()
    assert sorted(place.rglob("*")) == before


def test_what_somebody_else_put_into_a_run_folder_stays(start: Start, place: Path) -> None:
    start()
    theirs = place / f"{PREFIX}one" / "0" / "notes"
    theirs.write_text("mine")
    stop_guests(["one"])
    assert [str(path.relative_to(place)) for path in sorted(place.rglob("*"))] == [
        f"{PREFIX}one",
        f"{PREFIX}one/0",
        f"{PREFIX}one/0/notes",
    ]


@pytest.mark.parametrize("record", ["", "{", "[]", '{"process": 1}', "[" * 5000], ids=repr)
def test_a_record_that_is_not_ours_is_said_and_left(start: Start, place: Path, record: str) -> None:
    server = start()
    path = place / f"{PREFIX}one" / "0" / "guest"
    path.write_text(record)
    report = stop_guests(everything=True)
    assert report.notes == (f"'{path}' is not a record that this command wrote",)
    assert (report.stopped, lives(server), path.read_text()) == ((), True, record)


def test_run_folders_elsewhere_are_found_by_a_link_and_by_their_path(
    start: Start, place: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        start(name)
        os.rename(place / f"{PREFIX}{name}", elsewhere / name)
    os.symlink(elsewhere / "one", place / f"{PREFIX}link")
    assert [guest.name for guest in list_guests().guests] == ["link/0"]
    assert [each.name for each in stop_guests([str(elsewhere / "one")]).stopped] == ["link/0"]
    assert (os.listdir(place), (elsewhere / "one").exists()) == ([], False)
    monkeypatch.chdir(elsewhere)
    assert [each.name for each in stop_guests(["two"]).stopped] == [f"{elsewhere}/two/0"]
    assert [each.name for each in stop_guests(["three/0"]).stopped] == [f"{elsewhere}/three/0"]


def test_a_folder_that_is_made_elsewhere_leads_there_until_it_goes(place: Path, tmp_path: Path) -> None:
    fleet = FleetFolder(str(tmp_path / "run"))
    fleet.make()
    assert os.readlink(place / f"{PREFIX}{fleet.name}") == str(tmp_path / "run")
    fleet.remove()
    fleet.let_go()
    assert (os.listdir(place), (tmp_path / "run").exists()) == ([], False)


def test_a_link_to_a_folder_that_somebody_removed_goes(place: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path / "gone", place / f"{PREFIX}link")
    assert list_guests().guests == ()
    assert os.listdir(place) == []


def test_a_name_means_one_guest_or_all_of_a_command(start: Start) -> None:
    for number in range(3):
        start("one", number)
    start("two")
    assert [each.name for each in stop_guests(["one/1"]).stopped] == ["one/1"]
    assert [each.name for each in stop_guests(["one", "one/2"]).stopped] == ["one/0", "one/2"]
    assert [each.name for each in list_guests().guests] == ["two/0"]


def test_a_name_that_there_is_not_ends_nobody(start: Start) -> None:
    server = start()
    refused(call("guests", "stop", "one", "two"), 2, "there is no guest 'two'\n", "running guests: one/0")
    assert lives(server)


WRONG = {
    "nobody to stop": (["stop"], "names of guests are needed, or --all, but not both\n"),
    "some and all": (["stop", "one", "--all"], "names of guests are needed, or --all, but not both\n"),
    "a name to list": (["list", "one"], "NAME and --all are for guests stop\n"),
    "all without stop": (["--all"], "NAME and --all are for guests stop\n"),
    "another action": (["kill"], "argument action: invalid choice: 'kill'"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_a_usage_error(argv: list[str], message: str) -> None:
    refused(call("guests", *argv), 2, message)


def test_without_proc_nobody_is_taken_for_ended(start: Start, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    refused(without_proc("guests"), 5, "cannot tell which processes are alive: no /proc is mounted here\n", "mount")
    assert os.listdir(place) == [f"{PREFIX}one"]


def test_a_record_comes_back_as_it_was(place: Path) -> None:
    folder = FleetFolder(str(place)).of(0)
    folder.make()
    record = new_record(identity_of(os.getpid()), "/\udcff.mr")
    folder.write_record(record)
    assert folder.record() == record
    assert json.loads((place / "0" / "guest").read_text())["file"] == "/\udcff.mr"
