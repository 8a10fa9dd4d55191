"""What two QEMUs cannot both have: recognised in QEMU's messages, or in command lines where QEMU would be silent."""

from __future__ import annotations

import re
from collections.abc import Sequence

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.core.errors import RequestError

NUMBERED = "{n} in the command line is each clone's number, for what two QEMUs cannot both have"
ELSEWHERE = "another process has it, perhaps the guest that was saved: end that one, or name another"

_TAKEN = re.compile(
    r"address already in use|failed to get .*lock|is another process using|cannot lock pid file"
    r"|device or resource busy|could not set up host forwarding rule",
    re.IGNORECASE,
)
"""QEMU's words for ports and sockets, disks, pid files, taps, and what ``hostfwd`` listens on."""

_LISTENING = ("qmp", "qmp-pretty", "monitor", "serial", "parallel", "gdb", "vnc", "chardev")
_SOCKET = re.compile(r"^(?:unix:|socket,(?:.*,)?path=)([^,]+)")
_SERVER = re.compile(r",server(?:=on)?(?:,|$)")


def taken_hint(message: str, *, clones: bool) -> str:
    """What to do if a message of QEMU's says that somebody else has what it needs; empty if it says something else.

    Args:
        message: QEMU's words.
        clones: whether several QEMUs were started of one command line.
    """
    if not _TAKEN.search(message):
        return ""
    return NUMBERED if clones else ELSEWHERE


def refuse_shared_sockets(lines: Sequence[CommandLine]) -> None:
    """Refuse command lines that listen on the same unix socket: QEMU silently takes it from the one before.

    Raises:
        RequestError: names the socket.
    """
    seen: set[str] = set()
    for line in lines:
        found = set(_sockets(line))
        if both := sorted(seen & found):
            raise RequestError(f"several clones would listen on the socket {both[0]!r}", hint=NUMBERED)
        seen |= found


def _sockets(line: CommandLine) -> list[str]:
    """Paths of unix sockets that a QEMU of this command line listens on."""
    found = []
    for option in line.options:
        value = option.value or ""
        match = _SOCKET.match(value) if option.name in _LISTENING else None
        if match and (option.name == "vnc" or _SERVER.search(value)):
            found.append(match[1])
    return found
