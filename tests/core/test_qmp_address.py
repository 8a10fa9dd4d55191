"""A monitor's address as people have it at hand becomes the path of a unix socket, or a sentence."""

from __future__ import annotations

import pytest

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.qmp_address import qmp_socket


def nothing(_path: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/run/qmp", "/run/qmp"),
        ("qmp", "qmp"),
        ("unix:/run/qmp", "/run/qmp"),
        ("unix:qmp", "qmp"),
        ("unix:/run/qmp,server=on,wait=off", "/run/qmp"),
        ("unix:/run/qmp,server,nowait", "/run/qmp"),
        ("/run/qmp,server=on,wait=off", "/run/qmp"),
        ("unix:/run/a,,b,server=on", "/run/a,b"),
        ("unix:/run/qmp,something", "/run/qmp,something"),
        ("unix:qmp,server=on,wait=off,abstract=on", "\0qmp"),
        ("/run/vm:1", "/run/vm:1"),
        ("unix:/run/vm:4444", "/run/vm:4444"),
        ("./localhost:4444", "./localhost:4444"),
        ("tcpdump", "tcpdump"),
    ],
)
def test_what_one_would_paste_is_understood(address: str, path: str) -> None:
    assert qmp_socket(address, nothing) == path


@pytest.mark.parametrize("name", ["localhost:4444", "tcp:1", "unix:a", "a,server=on", "stdio", "unix:"])
def test_what_exists_is_meant_as_it_is(name: str) -> None:
    assert qmp_socket(name, [name].__contains__) == name
    if name != "unix:":
        assert qmp_socket(f"unix:{name}", [name].__contains__) == name


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:4444", "127.0.0.1:4444", "[::1]:4444", ":4444", "localhost:4444,server=on"),
        *("tcp:localhost:4444", "tcp::4444,server=on,wait=off", "telnet:localhost:1", "websocket:h:1"),
        *("vsock:3:4", "stdio", "pty", "fd:5", "pipe:/run/qmp", "udp::1"),
    ],
)
def test_what_is_no_unix_socket_is_refused_in_one_sentence(address: str) -> None:
    with pytest.raises(RequestError) as caught:
        qmp_socket(address, nothing)
    assert caught.value.message == (
        f"--qmp {address!r} is not a unix socket, which alone can hand QEMU the descriptor for its device state"
    )
    assert caught.value.hint == "give QEMU a monitor more, with -qmp unix:PATH,server=on,wait=off"


@pytest.mark.parametrize(
    ("address", "said"), [("unix:/run/qmp,server=off", "QEMU does not listen"), ("unix:", "names no socket")]
)
def test_a_socket_that_cannot_be_connected_to_is_refused(address: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        qmp_socket(address, nothing)
