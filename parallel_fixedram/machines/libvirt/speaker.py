"""What runs in a Bridge's process: QMP on our side, libvirt's API on the other.

::

    us -- execute stop, cont --------> suspend(), resume(): libvirt's own view stays right
       -- execute libvirt-... -------> what only libvirt knows or does (own_commands.py)
       -- execute anything else -----> qemuMonitorCommand, with the descriptors that came
       <-- answer, event ------------- what QEMU said

Events and answers keep QEMU's order: all events that QEMU sent before an answer are passed on before it. libvirtd sends
events from its main loop and answers from threads, so an answer may overtake events. But its main loop sends pending
events before it reads another request, so after two more requests they have arrived (:meth:`Speaker._take_in_events`).
Source: libvirt src/conf/object_event.c (virObjectEventStateQueue), src/rpc/virnetserverclient.c.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.libvirt.confinement import confined_by
from parallel_fixedram.machines.libvirt.library import Domain, library, said
from parallel_fixedram.machines.libvirt.wire import Wire

_TOUCH_DESCRIPTORS = ("add-fd", "xen-save-devices-state")

_FIRST_SET = 1 << 30
"""Number of our first descriptor set. libvirt numbers its own from 0 (libvirt src/qemu/qemu_domain.c), in 32 bits."""


class Speaker:
    """Serves one connection until its other end is closed.

    Args:
        opened: the domain, with events.
        sock: the connection.
        own: further commands by name: functions from arguments to the answer.
    """

    def __init__(
        self, opened: Domain, sock: socket.socket, own: Mapping[str, Callable[[Mapping[str, Any]], object]]
    ) -> None:
        import libvirt_qemu

        self._libvirt, self._qemu = library(), libvirt_qemu
        self._opened = opened
        self._own = own
        self._sets: set[int] = set()
        self._wire = Wire(self._libvirt, sock)
        libvirt_qemu.qemuMonitorEventRegister(opened.connection, opened.domain, None, self._event, None)

    def greet(self) -> None:
        """Greet as QEMU does."""
        version = self._passed_on({"execute": "query-version"})
        if "return" not in version:
            raise MachineError(f"QEMU does not tell its version: {version}")
        self._wire.say({"QMP": {"version": version["return"], "capabilities": []}})

    def serve(self) -> None:
        """Answer until the other end is closed; then take all our descriptors back from QEMU."""
        while not self._wire.over:
            self._wire.send()
            self._libvirt.virEventRunDefaultImpl()
            self._wire.receive()
            while (request := self._wire.request()) is not None:
                answer = self._answer(request)
                # before the answer: what QEMU sent before it comes first here, too
                self._take_in_events()
                self._wire.say({**answer, "id": request.get("id")})
        for number in self._sets.copy():
            with contextlib.suppress(Exception):
                self._passed_on({"execute": "remove-fd", "arguments": {"fdset-id": number}})

    def _event(self, _conn: Any, _dom: Any, name: str, seconds: int, micros: int, details: str | None, _: Any) -> None:
        event: dict[str, Any] = {"event": name, "timestamp": {"seconds": seconds, "microseconds": micros}}
        if details:
            event["data"] = json.loads(details)
        self._wire.say(event)

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        command, arguments = str(request.get("execute")), request.get("arguments") or {}
        try:
            match command:
                case "qmp_capabilities":
                    return {"return": {}}
                case "stop":
                    self._opened.domain.suspend()
                    return {"return": {}}
                case "cont":
                    self._resume()
                    return {"return": {}}
                case _ if own := self._own.get(command):
                    return {"return": own(arguments)}
            return self._passed_on(request)
        except (self._libvirt.libvirtError, MachineError) as error:
            return {"error": {"class": "GenericError", "desc": said(error)}}

    def _resume(self) -> None:
        """Like QEMU's ``cont``, which does not fail if the guest is running already."""
        domain = self._opened.domain
        try:
            domain.resume()
        except self._libvirt.libvirtError:
            if domain.state()[0] != self._libvirt.VIR_DOMAIN_RUNNING:
                raise

    def _passed_on(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have QEMU carry out a command, with the descriptors that came with it."""
        asked = {key: request[key] for key in ("execute", "arguments") if key in request}
        if asked["execute"] == "add-fd" and "fdset-id" not in asked["arguments"]:
            # numbers that no other command has at this domain
            number = max((_FIRST_SET + os.getpid() * 64, *(each + 1 for each in self._sets)))
            asked["arguments"] = {**asked["arguments"], "fdset-id": number}
        fds, self._wire.fds = self._wire.fds, []
        try:
            if fds:
                answer, _ = self._qemu.qemuMonitorCommandWithFiles(self._opened.domain, json.dumps(asked), fds, 0)
            else:
                answer = self._qemu.qemuMonitorCommand(self._opened.domain, json.dumps(asked), 0)
        finally:
            for fd in fds:
                os.close(fd)
        said_back = json.loads(answer)
        match asked["execute"], said_back:
            case "add-fd", {"return": {"fdset-id": int(number)}}:
                self._sets.add(number)
            case "remove-fd", {"return": _}:
                self._sets.discard(asked["arguments"]["fdset-id"])
        if "error" in said_back and asked["execute"] in _TOUCH_DESCRIPTORS:
            said_back["error"]["desc"] += self._why_perhaps()
        return {key: said_back[key] for key in ("return", "error") if key in said_back}

    def _why_perhaps(self) -> str:
        """What may keep QEMU from a descriptor, to be appended to QEMU's error."""
        with contextlib.suppress(self._libvirt.libvirtError):
            if who := confined_by(self._opened.domain.XMLDesc(0)):
                return f" ({who} confines this domain, and may keep QEMU from using the descriptor it was handed)"
        return ""

    def _take_in_events(self) -> None:
        """Pass on every event that QEMU sent before its last answer."""
        with contextlib.suppress(self._libvirt.libvirtError):
            # libvirtd sends the events that it has before it reads the second question
            for _ in range(2):
                self._opened.connection.getLibVersion()
        for _ in range(2):  # what has arrived is dispatched the next time the loop runs
            timer = self._libvirt.virEventAddTimeout(0, lambda *_: None, None)
            self._libvirt.virEventRunDefaultImpl()
            self._libvirt.virEventRemoveTimeout(timer)
