"""``--print``: what is shown is enough for a shell and a QMP client, without us."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli import call, done, refused
from support.command import report
from support.qemu import TIMEOUT, QemuProcess, boot_from
from support.qemu_boot import BootFolder, Guest, sha256
from support.qemu_files import SavedGuest
from support.qemu_monitor import Monitor

from parallel_fixedram.experiments.boot_sector import boot_image

MIB = 1 << 20
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MULTIFD = ("--channels", "2", "--experimental-multifd")


@pytest.fixture(scope="module")
def ours(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    """Our file of a running guest, in a folder whose name needs care."""
    folder = tmp_path_factory.mktemp("it's here, so")
    (folder / "image").write_bytes(boot_image(end=24 * MIB))
    saved = SavedGuest(path=folder / "vm, 1.mr", blocks={}, args=tuple(boot_from(folder.parent / "image")))
    (folder / "image").rename(folder.parent / "image")
    with QemuProcess(*saved.args, ram=saved.ram) as guest:
        guest.wait_serial("C")
        report("save", saved.path, "--qmp", guest.monitor_path)
    return saved


def printed(verb: str, saved: SavedGuest, *options: object, line: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Shell commands and QMP requests."""
    out = done(call(verb, saved.uri, "--print", *map(str, options), "--", *line)).out
    told = "; cont when query-migrate says that it is completed" if '"cont"' in out else ""
    commands, requests = out.split(f"# then, in a QMP monitor of each, after qmp_capabilities{told}:\n")
    return commands.splitlines(), [json.loads(text) for text in requests.splitlines()]


@contextlib.contextmanager
def by_hand(boot: BootFolder, command: str, requests: list[dict[str, Any]], number: int = 0) -> Iterator[Guest]:
    """Run what was printed: the command in a shell, with a QMP socket added, and the requests over that."""
    ours, theirs = socket.socketpair()
    folder = boot.run_dir / str(number)
    folder.mkdir(parents=True)
    with theirs, (folder / "log").open("w") as log:
        monitor = f"-chardev socket,id=by-hand,fd={theirs.fileno()} -qmp chardev:by-hand"
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command} {monitor}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
        )
    pidfd = os.pidfd_open(process.pid)
    client = Monitor(ours, pidfd)
    try:
        client.connect(TIMEOUT)
        client.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}, TIMEOUT)
        for request in requests:
            if request["execute"] == "cont":
                wait_completed(client)
            client.execute(request["execute"], request.get("arguments", {}), TIMEOUT)
        yield boot.guest(number, process.pid)
    finally:
        client.close()
        process.kill()
        process.wait()
        os.close(pidfd)


def wait_completed(client: Monitor) -> None:
    while client.execute("query-migrate", {}, TIMEOUT).get("status") != "completed":
        client.wait_event("MIGRATION", TIMEOUT)


@pytest.mark.parametrize("way", [(), MULTIFD], ids=["plain", "multifd"])
def test_a_printed_restore_works(ours: SavedGuest, boot: BootFolder, way: tuple[str, ...]) -> None:
    (command,), requests = printed("restore", ours, *way, line=boot.line_of(ours))
    with by_hand(boot, command, requests) as guest:
        assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS


def test_a_printed_restore_of_qemus_own_file_works(qemu_files: dict[str, SavedGuest], boot: BootFolder) -> None:
    saved = qemu_files["offset-123"]
    (command,), requests = printed("restore", saved, line=boot.line_of(saved))
    with by_hand(boot, command, requests) as guest:
        assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS


def test_a_printed_restore_into_a_file_works_once_the_file_is_filled(
    ours: SavedGuest, boot: BootFolder, tmp_path: Path
) -> None:
    ram = tmp_path / "ram, too"
    (command,), requests = printed("restore", ours, "--ram", f"m={ram}", line=boot.line_of(ours))
    assert not ram.exists()
    report("restore", ours.path, "--ram", f"m={ram}")
    with by_hand(boot, command, requests) as guest:
        assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS


def test_printed_clones_work(ours: SavedGuest, boot: BootFolder) -> None:
    before = sha256(ours.path)
    commands, requests = printed("clone", ours, "--count", 2, line=boot.line_of(ours, clones=2))
    with by_hand(boot, commands[0], requests) as first, by_hand(boot, commands[1], requests, 1) as second:
        for guest in (first, second):
            assert guest.wait_serial("[A-Z]{30}")[0] in LETTERS * 3
    assert sha256(ours.path) == before


def test_a_paused_one_is_printed_without_cont(ours: SavedGuest, boot: BootFolder) -> None:
    (command,), requests = printed("clone", ours, "--paused", line=boot.line_of(ours))
    words = shlex.split(command)
    assert "-S" in words
    assert words[-2:] == ["-incoming", "defer"]
    assert [request["execute"] for request in requests] == ["migrate-set-capabilities", "migrate-incoming"]


def test_the_json_has_the_same(ours: SavedGuest, boot: BootFolder) -> None:
    line = boot.line_of(ours, clones=2)
    same = ("--count", "2", "--identity", "same")
    commands, requests = printed("clone", ours, *same, line=line)
    found = done(call("clone", ours.path, *same, "--print", "--json", "--", *line)).json
    assert [note.partition(":")[0] for note in found.pop("notes")] == ["clones are the same machine"]
    (change,) = found.pop("changes")
    assert change.startswith("memory-backend-ram 'm' is now the file ")
    told = {"verb": "clone", "prepare": [], "commands": [shlex.split(each) for each in commands], "qmp": requests}
    assert found == {"schema": "parallel_fixedram.boot_plan", "version": 1, **told}


def test_what_cannot_be_done_by_hand_is_not_printed(
    ours: SavedGuest, qemu_files: dict[str, SavedGuest], boot: BootFolder
) -> None:
    plain, numa = qemu_files["plain"], qemu_files["numa"]
    line = boot.line_of(plain)
    no_stream = "has no clone stream for this command line\n"
    refused(boot.attempt("clone", plain.path, "--print", line=line), 2, no_stream, "--add-clone-stream adds one")
    refused(boot.attempt("restore", plain.path, "--print", "--ram", "m=ram", line=line), 2, no_stream, "--add-clone")
    for more in (["--shared"], ["--verify"]):
        refused(boot.attempt("restore", ours.path, "--print", *more, line=boot.line_of(ours)), 2, "", None)
    for more in (["--punch"], ["--add-clone-stream"]):
        refused(boot.attempt("clone", ours.path, "--print", *more, line=boot.line_of(ours)), 2, "changes nothing", "")
    result = boot.attempt("restore", numa.path, "--print", "--ram", "n0=ram", line=boot.line_of(numa))
    refused(result, 2, "main block 'n1' has no file", "--ram n1=PATH")


def examples(verb: str) -> list[list[str]]:
    """Examples of a verb that start a QEMU: the arguments before ``--``, then those behind it."""
    text = done(call(verb, "--help")).out.partition("examples:")[2].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if " -- " in line]


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_the_examples_of_the_help_texts_work(qemu_binary: str, boot: BootFolder, verb: str) -> None:
    """With default devices, and whatever else people do not think of."""
    (example,) = examples(verb)
    place = example.index("--")
    options, line = example[2:place], [each.replace("/tmp", str(boot.path)) for each in example[place + 1 :]]
    path, source = boot.path / "vm.mr", boot.path / "qmp"
    command = shlex.join([*line, "-qmp", f"unix:{source},server=on,wait=off"])
    with by_hand(boot, command, [], 9):
        report("save", path, "--qmp", source)
    shutil.rmtree(boot.run_dir)
    started, guests = boot.start(verb, path, *options, line=line)
    assert [guest.status() for guest in guests] == ["running"] * (4 if verb == "clone" else 1)
    assert len(started["changes"]) == (verb == "clone")
