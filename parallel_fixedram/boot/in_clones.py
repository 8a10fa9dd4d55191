"""What is done inside running clones: their clocks are set, and a command of the user's is run.

The command line tells where a guest agent is::

    -chardev socket,path=PATH,server=on,wait=off,id=qga0
    -device virtio-serial -device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0

Without an agent nothing can be done inside a guest: a note says so, and a user's command is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from parallel_fixedram.boot.command_line import CommandLine, split_properties
from parallel_fixedram.boot.device_options import devices
from parallel_fixedram.core.clone_options import Identity
from parallel_fixedram.core.errors import MachineError, RequestError

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.boot import GuestReport
    from parallel_fixedram.machines.qemu.guest_agent import GuestAgent
    from parallel_fixedram.machines.qemu.monitor import Monitor

_PORT = re.compile(r"org\.qemu\.guest_agent\.\d+")
_ON = ("on", "yes", "true", "y")
_AS_SAVED = "the clocks of clones go on from the time of the save"
_RUNNING = "running"
_NO_AGENT = "the command line has no guest agent on a socket"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSocket:
    """How to reach a guest's agent."""

    path: str
    chardev: str
    """Id of QEMU's character device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InClones:
    """What to do inside clones; ``of`` makes it."""

    sockets: Sequence[AgentSocket]
    """Socket of each clone's agent, in order; empty if the command line has none."""
    command: str
    """For a shell in each clone; empty for none."""
    sets_clocks: bool
    own_time: bool
    """Whether the guests have a time other than the host's."""

    @classmethod
    def of(cls, lines: Sequence[CommandLine], command: str, identity: Identity) -> Self:
        """What can be done with these command lines.

        Raises:
            RequestError: there is a command, but the guests will not run, or there is no agent to run it.
        """
        found = [agent_socket(line) for line in lines]
        sockets = [each for each in found if each]
        if command and lines[0].paused:
            raise RequestError("clones that do not run cannot run a command")
        if command and not sockets:
            hint = "-chardev socket,path=PATH-{n},server=on,wait=off,id=qga0 -device virtio-serial "
            hint += "-device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"
            raise RequestError(f"a command cannot be run in clones: {_NO_AGENT}", hint=hint)
        return cls(
            sockets=sockets,
            command=command,
            sets_clocks=identity is Identity.NEW,
            own_time=has_own_time(lines[0]),
        )

    @property
    def remedy(self) -> str:
        """What can be done about what clones share, as the end of a sentence."""
        if self.command:
            return "except what the command has changed"
        return "until --run-in-clone changes them" if self.sockets else "which only the guest itself can change"

    def carry_out(self, guests: Sequence[GuestReport], monitors: Sequence[Monitor]) -> tuple[str, ...]:
        """Do it in guests that were told to run.

        Returns:
            What the user has to know, a sentence each.

        Raises:
            MachineError: the command cannot be run, or fails, in a clone that the message names.
        """
        for number, guest in enumerate(guests):
            if self.command and guest.status != _RUNNING:
                raise MachineError(f"clone {number}: it is {guest.status!r}, and cannot run a command")
        obstacle = self._obstacle(guests)
        notes = [f"{_AS_SAVED}: {obstacle}"] if obstacle and self.sets_clocks else []
        sets_clocks = self.sets_clocks and not obstacle
        if not sets_clocks and not self.command:
            return tuple(notes)
        # imported only if there is anything to ask an agent
        from parallel_fixedram.boot.agents import agents_of, run_in_all

        try:
            with agents_of(self.sockets, monitors) as agents:
                if sets_clocks:
                    notes.append(_set_forward(agents))
                if self.command:
                    run_in_all(agents, self.command)
        except MachineError as error:
            if self.command:
                raise
            notes.append(f"{_AS_SAVED}: {error.message}")
        return tuple(notes)

    def _obstacle(self, guests: Sequence[GuestReport]) -> str:
        """Why clocks cannot or must not be set; empty if they can."""
        if any(guest.status != _RUNNING for guest in guests):
            return "they do not run"
        if self.own_time:
            return "-rtc gives them a time other than the host's"
        return "" if self.sockets else _NO_AGENT


def agent_socket(line: CommandLine) -> AgentSocket | None:
    """The guest agent of a command line; None if it has none on a unix socket that QEMU listens on.

    Raises:
        RequestError: a device is malformed.
    """
    wanted = {
        device.properties.get("chardev")
        for device in devices(line)
        if device.driver == "virtserialport" and _PORT.fullmatch(str(device.properties.get("name", "")))
    }
    for option in line.options:
        found = dict(split_properties(option.value or "", "backend")) if option.name == "chardev" else {}
        if found.get("id") in wanted and found.get("backend") == "socket" and found.get("server") in _ON:
            return AgentSocket(path=found["path"], chardev=found["id"]) if found.get("path") else None
    return None


def has_own_time(line: CommandLine) -> bool:
    """Whether the command line gives the guest a time other than the host's (``-rtc``)."""
    rtc = dict(pair for each in line.options if each.name == "rtc" for pair in split_properties(each.value or ""))
    return rtc.get("base", "utc") not in ("utc", "localtime") or rtc.get("clock", "host") != "host"


def _set_forward(agents: Sequence[GuestAgent]) -> str:
    """Set the clocks; returns a note about the outcome."""
    from parallel_fixedram.boot.agents import set_clocks

    try:
        return f"the clocks of clones were set forward by {set_clocks(agents):.1f} s, through their guest agents"
    except MachineError as error:
        return f"{_AS_SAVED}: {error.message}"
