"""RunState: stops a guest while its QEMU is saved, and makes sure that it goes on afterwards.

::

    us -- stop, cont --> QEMU
    guardian -- cont, on the same connection, if we die in between --> QEMU

Before the guest goes on, we find out what others did to it meanwhile (``instant.py``).
"""

from __future__ import annotations

import os
import select
from contextlib import ExitStack

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.format.globalstate import RUNNING
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.machines.qemu import discovery
from parallel_fixedram.machines.qemu.events import Events
from parallel_fixedram.machines.qemu.instant import HARMLESS, Held, look_back
from parallel_fixedram.machines.qemu.monitor import Monitor

_CONTINUE = b'\xff\n{"execute": "cont", "id": "guardian"}\n'
"""0xff makes QEMU drop a command that we may have sent only half of (QEMU docs/interop/qmp-spec.rst)."""


class RunState:
    """A guest's run state; the constructor changes nothing.

    Args:
        monitor: of the QEMU.
        guardian: lets the guest go on if we die; None for one that uses the monitor's connection.
        stays: whether a guest that we stopped stays stopped after ``resume``, until ``ended`` or ``let_go``.

    Raises:
        HostError: no process can be started for the guardian.
    """

    def __init__(self, monitor: Monitor, guardian: Guardian | None = None, *, stays: bool = False) -> None:
        self._monitor = monitor
        self._stays = stays
        self._runs = self._stopped = self._held = False
        self._ran_as = RUNNING
        self._events: Events | None = None
        self._stack = ExitStack()
        self._guardian = guardian or Guardian(self._go_on, [monitor.sock.fileno()])
        self._guardian.__enter__()

    def now(self) -> str:
        """QEMU's run state now."""
        return discovery.run_state(self._monitor)

    def is_running(self) -> bool:
        """Ask QEMU whether the guest runs."""
        return self.now() in discovery.RUNNING

    def ran(self) -> bool:
        """Whether it ran when ``get_ready`` was called."""
        return self._runs

    def to_save(self) -> str:
        """The run state for the file: the one from before ``pause`` stopped the guest."""
        return self._ran_as if self._stopped else self.now()

    def get_ready(self) -> None:
        """Find out whether the guest runs, and begin to listen for events."""
        if self._events is None:
            self._guardian.await_ready()
            self._events = self._stack.enter_context(self._monitor.listen(ignored=HARMLESS))
        status = self.now()
        self._runs = status in discovery.RUNNING
        self._ran_as = status if self._runs else RUNNING
        self._events.clear()

    def pause(self) -> bool:
        """Stop the guest; from then on the guardian watches over it. Returns whether it was we who stopped it.

        An event tells us that, since somebody else may have started or stopped the guest since ``get_ready``: ``stop``
        does nothing to a guest that stands still already (QEMU system/cpus.c, do_vm_stop).
        """
        assert self._events is not None, "get_ready() comes first"
        self._events.clear()  # a stop that was reported before is somebody else's
        self._held = True
        # before stop, because we may die before it is answered
        if self._runs:
            self._guardian.arm()
            self._stopped = True
        self._monitor.execute("stop")
        # without this event it stood still already, because of somebody else
        self._stopped = any(event["event"] == "STOP" for event in self._events.take()[0])
        if self._stopped:
            self._guardian.arm()
        else:
            self._guardian.disarm()
        return self._stopped

    def resume(self) -> str | None:
        """Let the guest go on if ``pause`` stopped it and nobody else has changed that (Machine.resume).

        Raises:
            MachineError: QEMU refuses, does not answer, or has ended, so that what was read may not be its memory. Or
                the guest has come to its end, and stays as it is.
        """
        if not self._held:
            return None
        try:
            held = self._look_back()
        except MachineError:
            self._go_on_if(self._stopped)
            raise
        if self._stays and held.ours and not held.torn:
            self._held = False  # the guardian stays armed
            return None
        self._go_on_if(held.ours)
        if held.over:
            raise MachineError(f"{self._monitor.name!r}: {held.torn} while it was being saved, and was left as it is")
        return held.torn or None

    def ended(self) -> None:
        """Note that the guest has been ended, so that nobody has to let it go on."""
        self._stopped = False
        self._guardian.disarm()

    def close(self) -> None:
        """Stop listening, and end the guardian unless the guest is still stopped."""
        if not self._stopped:
            self._guardian.close()
        self._stack.close()

    def let_go(self) -> None:
        """If we could not let the guest go on, have the guardian do it.

        Only called when we no longer use the connection: the guardian is the last hope, and needs it for itself.
        """
        self._guardian.let_go()

    def _look_back(self) -> Held:
        """What happened to the guest since ``pause``."""
        assert self._events is not None, "get_ready() comes first"
        status = self.now()
        events, complete = self._events.take()
        return look_back(events, status, ours=self._stopped, complete=complete)

    def _go_on_if(self, ours: bool) -> None:
        """Stop holding the guest, and let it go on if it stands still because of us."""
        if ours:
            self._monitor.execute("cont")
        # when it is answered: until then the guardian may have to do it
        self._stopped = self._held = False
        self._guardian.disarm()

    def _go_on(self) -> None:
        """Runs in the guardian, over our connection, which outlives us.

        It waits for as long as QEMU hangs: QEMU would not read a command from a connection that is closed by then.
        """
        fd = self._monitor.sock.fileno()
        request, answer = memoryview(_CONTINUE), b""
        poll = select.poll()
        while b'"guardian"' not in answer:
            poll.register(fd, select.POLLIN | (select.POLLOUT if request else 0))
            for _, events in poll.poll():
                if request and events & select.POLLOUT:
                    request = request[os.write(fd, request) :]
                elif events & select.POLLIN:
                    if not (data := os.read(fd, 1 << 16)):
                        return
                    answer = answer[-64:] + data
                if events & (select.POLLHUP | select.POLLERR):
                    return
