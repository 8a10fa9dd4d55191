"""GuestProcess: a guest for when there is no QEMU at hand: a process of its own that really writes to shared RAM.

::

      saver (this process)                       guest (forked)
    +-----------------------+   GO, HALT       +------------------------+
    | GuestProcess (Machine)|===== socket ====>| child.live             |
    |   memfd, not mapped --+--- shared RAM ---+-> mapped, written      |
    |   DirtyLog.sync     --+--- shared log ---+-> DirtyLog.mark        |
    +-----------------------+                  +------------------------+

The guest dies with the thread that made it, so make it in the main thread, or in one that lives as long.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import ExitStack, closing

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import AddressSpace, GuestBlock
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, RAMBlock
from parallel_fixedram.core.units import format_size
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.memory_limit import check_memory
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.host.processes import signals
from parallel_fixedram.machines.builtin import child
from parallel_fixedram.machines.builtin.control import ANSWER_SECONDS, Control
from parallel_fixedram.machines.builtin.dirty_log import DirtyLog
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_only import RamOnly

MACHINE_NAME = "parallel-fixedram"
"""Machine type that the built-in guest writes into a file."""

RAM_IDSTR = "pc.ram"
"""Name of its only RAMBlock, the same as in QEMU's PC machines."""

_FOREVER = (1 << 64) - 1

_log = logging.getLogger(__name__)


class GuestProcess(RamOnly, Closing):
    """The built-in guest: a Machine that also keeps a dirty log.

    When the constructor returns, the guest has booted and stands still. Use it as a context manager, or ``close`` it.

    Args:
        spec: its RAM and its workload.
        observer: told of the phase ``fill`` while the guest boots.
        answer_seconds: how long it may take to answer what it answers at once.

    Attributes:
        spec: the same.
        log: the dirty log (a DirtySource), with everything written since and during boot.
        steps: steps done when it last answered; exact while it stands still.

    Raises:
        HostError: there is no memory or no process for it.
        MachineError: it died or failed while booting.
    """

    def __init__(self, spec: GuestSpec, observer: Observer = SILENT, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        _check_memory(spec)
        self.spec = spec
        self.steps = 0
        self._answer_seconds = answer_seconds
        self._running = False
        self._goes_on = False  # resume() has something to undo
        try:
            with ExitStack() as stack:
                self._set_up(stack, observer)
                self._stack = stack.pop_all()
        except OSError as error:
            raise HostError.from_os(f"cannot create a guest of {format_size(spec.size)}", error) from error
        _log.debug("guest %d has booted: %s", self.pid, spec)

    def _set_up(self, stack: ExitStack, observer: Observer) -> None:
        self.log = stack.enter_context(closing(DirtyLog(self.spec.pages)))
        self._memfd = _create_ram(self.spec.size)
        stack.callback(os.close, self._memfd)
        source = MappedSource(self._memfd, length=self.spec.size)
        stack.callback(source.close)
        self._block = GuestBlock(block=RAMBlock(idstr=RAM_IDSTR, used_length=self.spec.size), source=source)
        with signals.held():
            self._control = Control(lambda sock, parent: child.live(self.spec, self._memfd, self.log, sock, parent))
            stack.callback(self._control.close)
        progress = _Progress(self.spec.written_pages, observer)
        self.steps = self._control.wait_until_booted(progress.filled)
        progress.filled(self.spec.written_pages)

    @property
    def pid(self) -> int:
        """Process id of the guest; -1 when it is gone."""
        return self._control.pid

    @property
    def name(self) -> str:
        """MACHINE_NAME (Machine.name)."""
        return MACHINE_NAME

    def dirty_source(self) -> DirtyLog:
        """``log`` (Machine.dirty_source)."""
        return self.log

    @property
    def memfd(self) -> int:
        """Descriptor of the RAM, a sparse file of ``spec.size`` bytes whose size never changes; valid until
        ``close``."""
        return self._memfd

    def guest_blocks(self) -> list[GuestBlock]:
        """The one block (Machine.guest_blocks)."""
        return [self._block]

    def start(self) -> None:
        """Let it run freely, or until ``spec.steps`` steps are done if that is set.

        Raises:
            MachineError: it died, or does not answer.
        """
        limit = _FOREVER if self.spec.steps is None else self.spec.steps
        self.steps = self._control.ask(child.GO, limit, self._answer_seconds)
        self._running = True

    def run(self, steps: int) -> int:
        """Let a guest that stands still do exactly this many steps, and wait for them.

        Returns:
            The number of steps done since it booted.

        Raises:
            MachineError: it runs freely already, or died.
        """
        if self._running:
            raise MachineError(f"guest process {self.pid} is running freely and cannot do {steps} steps on request")
        self.steps = self._control.ask(child.HALT, self.steps + steps)
        return self.steps

    def holds(self, path: str) -> bool:
        """No: its memory has no name (Machine.holds)."""
        return False

    def is_running(self) -> bool:
        """Whether it runs freely (Machine.is_running)."""
        return self._running

    def pause(self) -> bool:
        """Return when no page changes any more (Machine.pause). A guest idling after its steps counts as running."""
        was_running = self._running
        if was_running:  # note it first, so that resume() works whatever happens next
            self._running, self._goes_on = False, True
        self.steps = self._control.ask(child.HALT, 0, self._answer_seconds)
        return was_running

    def resume(self) -> None:
        """Let it go on if ``pause`` found it running (Machine.resume)."""
        if self._goes_on:
            self.start()
            self._goes_on = False

    def address_space(self) -> AddressSpace:
        """It gives a userfaultfd of itself (Machine.address_space)."""
        with closing(Userfaultfd.open_own()) as ours:  # it has our rights: if we are refused, so is it
            ours.enable()
        return AddressSpace(watch=self._watch, has_answered=lambda: None)  # it never discards memory

    def userfaultfd(self) -> tuple[Userfaultfd, int]:
        """A userfaultfd of the guest's process, and the address of its RAM there.

        Raises:
            HostError: the guest cannot get one.
            MachineError: it died.
        """
        fd, address = self._control.ask_for_userfaultfd()
        return Userfaultfd(fd), address

    def _watch(self) -> tuple[int, list[int]]:
        userfaultfd, address = self.userfaultfd()
        return userfaultfd.detach(), [address]

    def close(self) -> None:
        """End the guest and release everything; may be called more than once.

        Unlike other machines it does not run on, since nobody else could reach it.
        """
        self._memfd = -1
        self._stack.close()


class _Progress:
    """Progress of the phase ``fill``, which exists only if the guest writes anything while it boots."""

    def __init__(self, pages: int, observer: Observer) -> None:
        self._observer = observer
        self._pages = 0
        if pages:
            observer.phase("fill", pages * TARGET_PAGE_SIZE)

    def filled(self, pages: int) -> None:
        """This many pages are filled in all."""
        if pages > self._pages:
            self._observer.advanced((pages - self._pages) * TARGET_PAGE_SIZE)
            self._pages = pages


def _check_memory(spec: GuestSpec) -> None:
    """Refuse a guest for which the kernel would have to kill processes.

    Raises:
        HostError: the pages that it writes do not fit into available memory.
    """
    needed = spec.written_pages * TARGET_PAGE_SIZE
    check_memory(needed, f"the guest writes {format_size(needed)} of RAM", hint="give it a smaller size= or fraction=")


def _create_ram(size: int) -> int:
    """A sparse memory file of ``size`` bytes that can neither grow nor shrink.

    Raises:
        OSError: the system refuses.
    """
    fd = os.memfd_create(RAM_IDSTR, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(fd)
        raise
    return fd
