"""What two QEMUs cannot both have: QEMU's words for it, and the sockets that it says nothing of."""

from __future__ import annotations

import os
import pwd
import socket
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.somebody_else import as_nobody

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.taken import ELSEWHERE, NUMBERED, refuse_shared_sockets, taken_hint
from parallel_fixedram.core.errors import MachineError, RequestError
from parallel_fixedram.machines.qemu.monitor import Monitor

WORDS = [  # of QEMU 10.0
    "QEMU: -vnc :77: Failed to find an available port: Address already in use",
    "QEMU: -gdb tcp::12345: Failed to find an available port: Address already in use",
    "QEMU: -nic user,hostfwd=tcp::22222-:22: Could not set up host forwarding rule 'tcp::22222-:22'",
    'QEMU: -drive file=d.qcow2: Failed to get "write" lock; Is another process using the image [d.qcow2]?',
    'QEMU: Failed to get shared "write" lock',
    "QEMU: cannot create PID file: Cannot lock pid file: Resource temporarily unavailable",
    "QEMU: -netdev tap,id=t: could not configure /dev/net/tun (tapx0): Device or resource busy",
]


@pytest.mark.parametrize("words", WORDS)
def test_what_somebody_else_has_gets_a_hint_that_works(words: str) -> None:
    assert taken_hint(words, clones=True) == NUMBERED
    assert taken_hint(words, clones=False) == ELSEWHERE


@pytest.mark.parametrize("words", ["QEMU: 'x' is not a valid device", "QEMU: Could not open 'x': No such file"])
def test_other_words_get_none(words: str) -> None:
    assert taken_hint(words, clones=True) == taken_hint(words, clones=False) == ""


def clones(*arguments: str) -> list[CommandLine]:
    return [CommandLine.parse(["qemu", *arguments]).with_number(number) for number in range(2)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("-qmp", "unix:/x/{},server=on,wait=off"),
        ("-monitor", "unix:/x/{},server,nowait"),
        ("-serial", "unix:/x/{},server=on"),
        ("-chardev", "socket,id=c,path=/x/{},server=on,wait=off"),
        ("-chardev", "socket,path=/x/{},id=c,server=on"),
        ("-vnc", "unix:/x/{}"),
    ],
)
def test_clones_that_would_take_a_socket_from_each_other_are_refused(option: str, value: str) -> None:
    with pytest.raises(RequestError, match="several clones would listen on the socket '/x/s'") as caught:
        refuse_shared_sockets(clones(option, value.format("s")))
    assert caught.value.hint == NUMBERED
    refuse_shared_sockets(clones(option, value.format("{n}")))
    refuse_shared_sockets(clones(option, value.format("s"))[:1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("-chardev", "socket,id=c,path=/x/s"),
        ("-chardev", "socket,id=c,path=/x/s,server=off"),
        ("-chardev", "file,id=c,path=/x/s"),
        ("-vnc", ":{n}"),
        ("-qmp", "stdio"),
        ("-append", "unix:/x/s,server=on"),
    ],
)
def test_what_clones_may_share_is_let_pass(arguments: tuple[str, str]) -> None:
    refuse_shared_sockets(clones(*arguments))


def refusal(path: Path) -> tuple[str, str]:
    """Message and hint of the error that somebody gets who may not use a socket."""
    try:
        Monitor(str(path))
    except MachineError as error:
        return error.message, error.hint
    return "", ""


def test_a_socket_of_another_user_is_said_to_be_whose_it_is() -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    with TemporaryDirectory(dir="/tmp") as name, socket.socket(socket.AF_UNIX) as server:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "hidden").mkdir(0o700)
        server.bind(str(folder / "qmp"))
        (folder / "qmp").chmod(0o600)
        for asked, found in ((folder / "qmp", folder / "qmp"), (folder / "hidden" / "qmp", folder / "hidden")):
            message, hint = as_nobody(partial(refusal, asked))
            assert message.endswith(f": permission denied ('{found}' belongs to user {me!r})")
            assert hint == "run as that user, or as root"
        os.chown(folder / "qmp", without_a_name := 54321, 0)
        message, _ = as_nobody(lambda: refusal(folder / "qmp"))
        assert f"belongs to user {without_a_name}" in message
