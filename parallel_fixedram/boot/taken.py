"""Things that two QEMUs cannot share: recognised in QEMU's messages, or in command lines if QEMU would not complain."""

from __future__ import annotations

import re
from collections.abc import Sequence

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.core.errors import RequestError

NUMBERED = "{n} in the command line becomes each clone's number, for things that two QEMUs cannot share"
ELSEWHERE = "another process has it, perhaps the guest that was saved: end that process, or use something else"

_TAKEN = re.compile(
    r"address already in use|failed to get .*lock|is another process using|cannot lock pid file"
    r"|device or resource busy|could not set up host forwarding rule",
    re.IGNORECASE,
)
"""QEMU's messages about ports and sockets, disks, pid files, taps, and ports of ``hostfwd``."""

_LISTENING = ("qmp", "qmp-pretty", "monitor", "serial", "parallel", "gdb", "vnc", "chardev")
_SOCKET = re.compile(r"^(?:unix:|socket,(?:.*,)?path=)([^,]+)")
_SERVER = re.compile(r",server(?:=on)?(?:,|$)")


def taken_hint(message: str, *, clones: bool) -> str:
    """What to do if QEMU's message says that somebody else has what it needs; otherwise empty.

    Args:
        message: QEMU's message.
        clones: whether several QEMUs were started from one command line.
    """
    if not _TAKEN.search(message):
        return ""
    return NUMBERED if clones else ELSEWHERE


def refuse_shared_sockets(lines: Sequence[CommandLine]) -> None:
    """Refuse command lines that listen on the same unix socket, which QEMU would silently take from an earlier one.

    Raises:
        RequestError: they do; the message names the socket.
    """
    seen: set[str] = set()
    for line in lines:
        found = set(_sockets(line))
        if both := sorted(seen & found):
            raise RequestError(f"several clones would listen on the socket {both[0]!r}", hint=NUMBERED)
        seen |= found


def _sockets(line: CommandLine) -> list[str]:
    """Paths of the unix sockets that a QEMU with this command line listens on."""
    found = []
    for option in line.options:
        value = option.value or ""
        match = _SOCKET.match(value) if option.name in _LISTENING else None
        if match and (option.name == "vnc" or _SERVER.search(value)):
            found.append(match[1])
    return found
