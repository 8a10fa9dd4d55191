"""Monitor: QEMU's own client library, one blocking call at a time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError


class QemuError(Exception):
    """QEMU refused, failed, or went away; the text is its own."""


class QemuDied(QemuError):
    """The process ended while something was expected of it."""


class Monitor:
    """A QMP session over a connected socket.

    Its event loop runs only inside the calls: no thread and no task outlives them.

    Args:
        sock: connected to QEMU; belongs to the monitor from now on.
        pidfd: becomes readable when QEMU ends, which ends every call too.
    """

    def __init__(self, sock: socket.socket, pidfd: int) -> None:
        self._sock = sock
        self._pidfd = pidfd
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("tests")

    def connect(self, timeout: float) -> None:
        self._run(self._client.connect(self._sock), "greeting", timeout)

    def execute(self, command: str, arguments: dict[str, Any], timeout: float) -> Any:
        return self._run(self._client.execute(command, arguments or None), command, timeout)

    def wait_event(self, name: str, timeout: float) -> dict[str, Any]:
        """Wait for an event; older ones of other names are forgotten."""
        while (event := dict(self._run(self._client.events.get(), name, timeout)))["event"] != name:
            pass
        return event

    def take_events(self) -> list[str]:
        """Names of the events that have come since they were last taken or waited for."""
        self.execute("query-version", {}, 10)  # what happened before that has been said before its answer
        return [str(event["event"]) for event in self._client.events.clear()]

    def migration(
        self, command: str, uri: str, capabilities: Iterable[str], parameters: Mapping[str, Any], timeout: float
    ) -> dict[str, Any]:
        """Save or load with exactly these capabilities; the parameters are set back afterwards."""
        self._set_capabilities({"events", *capabilities})
        before = self.execute("query-migrate-parameters", {}, timeout)
        self.execute("migrate-set-parameters", {"max-bandwidth": 0, **parameters}, timeout)
        self._client.events.clear()
        try:
            self.execute(command, {"uri": uri}, timeout)
            return self._wait_migration(command, timeout)
        finally:
            with contextlib.suppress(QemuDied):
                self.execute("migrate-set-parameters", {name: before[name] for name in parameters}, timeout)

    def _set_capabilities(self, wanted: set[str]) -> None:
        known = [state["capability"] for state in self.execute("query-migrate-capabilities", {}, 10)]
        # QEMU says itself what it thinks of names it does not know.
        states = [{"capability": name, "state": name in wanted} for name in [*known, *wanted.difference(known)]]
        self.execute("migrate-set-capabilities", {"capabilities": states}, 10)

    def _wait_migration(self, command: str, timeout: float) -> dict[str, Any]:
        while True:
            state: dict[str, Any] = self.execute("query-migrate", {}, timeout)
            match state.get("status"):
                case "completed":
                    return state
                case "failed" | "cancelled":
                    raise QemuError(f"{command}: {state.get('error-desc') or state['status']}")
            self.wait_event("MIGRATION", timeout)

    def close(self) -> None:
        """Close the session; QEMU may be dead or alive."""
        # The library tells here once more how the session ended, which the call that noticed has reported already.
        with contextlib.suppress(QemuError):
            if self._client.runstate.name != "IDLE":
                self._run(self._client.disconnect(), "disconnect", 5, watch=False)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._sock.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any], what: str, timeout: float, *, watch: bool = True) -> Any:
        try:
            return self._loop.run_until_complete(self._or_death(coroutine, what, timeout, watch))
        except ExecuteError as error:
            raise QemuError(f"{what}: {error}") from None
        except (QMPError, EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise QemuDied(f"{what}: {error or type(error).__name__}") from error

    async def _or_death(self, coroutine: Coroutine[Any, Any, Any], what: str, timeout: float, watch: bool) -> Any:
        task = self._loop.create_task(coroutine)
        died = asyncio.Event()
        death = self._loop.create_task(died.wait())
        if watch:
            self._loop.add_reader(self._pidfd, died.set)
        try:
            await asyncio.wait({task, death}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise QemuDied(f"{what}: process ended") if died.is_set() else TimeoutError(f"{what}: none in {timeout} s")
        finally:
            self._loop.remove_reader(self._pidfd)
            task.cancel()
            death.cancel()
            await asyncio.gather(task, death, return_exceptions=True)
