"""Have guest agents set clocks forward, and run a command, in running clones.

QEMU knows whether an agent runs in a guest: its port is open then. A command is sent to all agents before we wait for
the first answer.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from parallel_fixedram.boot.command_line import NUMBER
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.words import shown
from parallel_fixedram.machines.qemu.guest_agent import GuestAgent

if TYPE_CHECKING:
    from parallel_fixedram.boot.in_clones import AgentSocket
    from parallel_fixedram.machines.qemu.monitor import Monitor

_LOOK_SECONDS = 0.05
"""Pause between queries about an unfinished command."""
_NANOSECONDS = 1e9
_LATEST = 1 << 63
"""An agent's times are below this, nanoseconds since 1970."""


@contextmanager
def agents_of(sockets: Sequence[AgentSocket], monitors: Sequence[Monitor]) -> Iterator[list[GuestAgent]]:
    """A session with the guest agent of each clone, in their order.

    Raises:
        MachineError: a clone, which the message names, has no running agent, or one that does not answer.
    """
    with ExitStack() as stack:
        agents = []
        for number, (socket, monitor) in enumerate(zip(sockets, monitors, strict=True)):
            if not _is_open(monitor, socket.chardev):
                raise MachineError(f"clone {number}: no guest agent runs in it, its port is not open")
            agents.append(stack.enter_context(GuestAgent(socket.path, f"clone {number}")))
        _greet(agents)
        yield agents


def set_clocks(agents: Sequence[GuestAgent]) -> float:
    """Set the clock of each guest forward to the host's time; a clock that is ahead is left alone.

    Returns:
        How far the slowest clock was set forward, seconds.

    Raises:
        MachineError: a guest, which the message names, refuses.
    """
    # all are asked before the first answer is read, so that they work at the same time
    for agent in agents:
        agent.ask("guest-get-time")
    behind: dict[GuestAgent, int] = {}
    for agent in agents:
        there = agent.answer()
        if type(there) is not int or not 0 <= there < _LATEST:
            raise agent.malformed(there)
        if (nanoseconds := time.time_ns() - there) > 0:
            behind[agent] = nanoseconds
    for agent in behind:
        agent.ask("guest-set-time", {"time": time.time_ns()})
    for agent in behind:
        agent.answer()
    return max(behind.values(), default=0) / _NANOSECONDS


def run_in_all(agents: Sequence[GuestAgent], command: str) -> None:
    """Have a shell in each guest run a command, and wait until it has ended in all of them.

    Args:
        agents: of the clones, in order.
        command: for ``/bin/sh -c``; ``{n}`` is the clone's number.

    Raises:
        MachineError: it cannot be started or fails in a clone, which the message names along with the exit code.
    """
    _greet(agents)  # else a late answer to an earlier command could be taken for the answer to this one
    for number, agent in enumerate(agents):
        arguments = ["-c", command.replace(NUMBER, str(number))]
        agent.ask("guest-exec", {"path": "/bin/sh", "arg": arguments, "capture-output": True})
    running: dict[GuestAgent, int] = {}
    for agent in agents:
        match agent.answer():
            case {"pid": int(pid)}:
                running[agent] = pid
            case other:
                raise agent.malformed(other)
    while running:
        for agent, pid in running.items():
            agent.ask("guest-exec-status", {"pid": pid})
        running = {agent: pid for agent, pid in running.items() if not _has_ended(agent)}
        if running:
            time.sleep(_LOOK_SECONDS)


def _has_ended(agent: GuestAgent) -> bool:
    """Whether a command has ended, from the agent's answer to a query about it.

    Raises:
        MachineError: it has failed.
    """
    match agent.answer():
        case {"exited": False}:
            return False
        case {"exited": True, "exitcode": 0}:
            return True
        case {"exited": True, "exitcode": int(code)} as status:
            raise agent.error(f"the command ended with exit code {code}{_last_line(status)}")
        case {"exited": True, "signal": int(number)} as status:
            raise agent.error(f"the command was ended by signal {number}{_last_line(status)}")
        case other:
            raise agent.malformed(other)


def _last_line(status: Mapping[str, Any]) -> str:
    """The last line that a command wrote to stderr, as the end of a sentence."""
    try:
        text = base64.b64decode(str(status.get("err-data", "")), validate=True).decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""
    said = next((shown(line) for line in reversed(text.split("\n")) if line.strip()), "")
    return f": {said}" if said else ""


def _greet(agents: Sequence[GuestAgent]) -> None:
    numbers = [agent.greet() for agent in agents]
    for agent, number in zip(agents, numbers, strict=True):
        agent.greeted(number)


def _is_open(monitor: Monitor, chardev: str) -> bool:
    """Whether a process in the guest has opened the port behind a character device (QEMU qapi/char.json)."""
    match [each for each in monitor.execute("query-chardev") if each.get("label") == chardev]:
        case [{"frontend-open": bool(is_open)}]:
            return is_open
        case other:
            raise monitor.malformed("query-chardev", other)
