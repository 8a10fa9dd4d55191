"""GuestProcess: a guest for when there is no QEMU at hand; a process of its own that really changes shared RAM.

::

      saver (this process)                       guest (forked)
    +-----------------------+   GO, HALT       +------------------------+
    | GuestProcess (Machine)|===== socket ====>| child.live             |
    |   memfd, not mapped --+--- shared RAM ---+-> mapped, written      |
    |   DirtyLog.sync     --+--- shared log ---+-> DirtyLog.mark        |
    +-----------------------+                  +------------------------+

The guest dies with the thread that made it, so make it in the main thread or in one that lasts as long.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import AddressSpace, GuestBlock
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE, RAMBlock
from parallel_fixedram.core.units import format_size
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.memory_limit import check_memory
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.host.processes import forked, signals
from parallel_fixedram.machines.builtin import child
from parallel_fixedram.machines.builtin.dirty_log import DirtyLog
from parallel_fixedram.machines.builtin.spec import GuestSpec

MACHINE_NAME = "parallel-fixedram"
"""Machine type that the built-in guest writes into a file."""

RAM_IDSTR = "pc.ram"
"""Name of its only RAMBlock, as QEMU's PC machines call theirs."""

_ANSWER_SECONDS = 30.0
_FOREVER = (1 << 64) - 1

_log = logging.getLogger(__name__)


class GuestProcess:
    """The built-in guest: a Machine that also keeps a dirty log.

    When the constructor returns it has booted and stands still. Use it as a context manager, or ``close`` it.

    Args:
        spec: its RAM and what it does.
        observer: hears of the phase ``fill`` while it boots.

    Attributes:
        spec: the same.
        log: the dirty log (a DirtySource); what was written since boot is in it, boot included.
        pid: process id of the guest.
        steps: steps done when it last answered; exact while it stands still.

    Raises:
        HostError: no memory, or no process, for it.
        MachineError: it died or failed while booting.
    """

    def __init__(self, spec: GuestSpec, observer: Observer = SILENT) -> None:
        _check_memory(spec)
        self.spec = spec
        self._observer = observer
        self._filled_pages = 0
        self.steps = 0
        self.pid = 0
        self._sequence = 0
        self._running = False
        self._goes_on = False  # resume() has something to undo
        try:
            with ExitStack() as stack:
                self._set_up(stack)
                self._stack = stack.pop_all()
        except OSError as error:
            raise HostError.from_os(f"cannot create a guest of {format_size(spec.size)}", error) from error
        _log.debug("guest %d has booted: %s", self.pid, spec)

    def _set_up(self, stack: ExitStack) -> None:
        self.log = stack.enter_context(closing(DirtyLog(self.spec.pages)))
        self._memfd = _create_ram(self.spec.size)
        stack.callback(os.close, self._memfd)
        source = MappedSource(self._memfd, length=self.spec.size)
        stack.callback(source.close)
        self._block = GuestBlock(block=RAMBlock(idstr=RAM_IDSTR, used_length=self.spec.size), source=source)
        self._socket, socket_of_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(self._socket)
        with socket_of_child:
            parent = os.getpid()
            with signals.held():
                self.pid = os.fork()
                if self.pid == 0:
                    child.live(self.spec, self._memfd, self.log, socket_of_child, parent)
                stack.callback(self._kill)
        if self.spec.written_pages:
            self._observer.phase("fill", self.spec.written_pages * TARGET_PAGE_SIZE)
        self.steps = self._answer(None)
        self._filled(self.spec.written_pages)

    @property
    def name(self) -> str:
        """MACHINE_NAME (Machine.name)."""
        return MACHINE_NAME

    @property
    def target(self) -> str:
        """None of QEMU's (Machine.target)."""
        return ""

    def dirty_source(self) -> DirtyLog:
        """``log`` (Machine.dirty_source)."""
        return self.log

    @property
    def memfd(self) -> int:
        """Descriptor of the RAM: ``spec.size`` bytes, sparse, never changing its size; valid until ``close``."""
        return self._memfd

    def guest_blocks(self) -> list[GuestBlock]:
        """The one block (Machine.guest_blocks)."""
        return [self._block]

    def start(self) -> None:
        """Let it run freely, until ``spec.steps`` steps are done if there is such a number.

        Raises:
            MachineError: it does not.
        """
        limit = _FOREVER if self.spec.steps is None else self.spec.steps
        self.steps = self._ask(child.GO, limit, _ANSWER_SECONDS)
        self._running = True

    def run(self, steps: int) -> int:
        """Let a guest that stands still do exactly so many steps, and wait for them.

        Returns:
            How many it has done since it booted.

        Raises:
            MachineError: it runs freely already, or died.
        """
        if self._running:
            raise MachineError(f"guest process {self.pid} runs freely, it cannot be told to do {steps} steps")
        self.steps = self._ask(child.HALT, self.steps + steps)
        return self.steps

    def holds(self, path: str) -> bool:
        """No: its memory has no name (Machine.holds)."""
        return False

    def is_running(self) -> bool:
        """Whether it runs freely (Machine.is_running)."""
        return self._running

    def get_ready(self) -> None:
        """There is nothing to do (Machine.get_ready)."""

    def sync_disks(self) -> Sequence[str]:
        """It has none (Machine.sync_disks)."""
        return ()

    def pause(self) -> bool:
        """Return when no page changes any more (Machine.pause); one that idles after its steps counts as running."""
        was_running = self._running
        if was_running:  # noted first: whatever happens on the way, resume() lets it go on
            self._running, self._goes_on = False, True
        self.steps = self._ask(child.HALT, 0, _ANSWER_SECONDS)
        return was_running

    def resume(self) -> None:
        """Let it go on if ``pause`` found it running (Machine.resume)."""
        if self._goes_on:
            self.start()
            self._goes_on = False

    def look_again(self) -> bool:
        """Its RAM stays what it was booted with (Machine.look_again)."""
        return False

    def device_state(self) -> bytes:
        """Empty: it has no devices (Machine.device_state)."""
        return b""

    def address_space(self) -> AddressSpace:
        """It gives a userfaultfd of itself (Machine.address_space)."""
        with closing(Userfaultfd.open_own()) as ours:  # what is refused to us is refused to it
            ours.enable()
        return AddressSpace(watch=self._watch, has_answered=lambda: None)  # it never gives memory back

    def userfaultfd(self) -> tuple[Userfaultfd, int]:
        """A userfaultfd of the guest's process, and the address of its RAM there.

        Raises:
            HostError: the guest cannot have one.
            MachineError: it died.
        """
        self._send(child.WATCH, 0)
        while True:
            message, descriptors = self._receive(_ANSWER_SECONDS)
            if message[:1] in (child.FAILED, child.HOST_FAILED):
                raise self._failure(message)
            _, sequence, address = child.ANSWER.unpack(message)
            for fd in descriptors:
                os.set_inheritable(fd, False)
                if sequence == self._sequence:
                    return Userfaultfd(fd), address
                os.close(fd)  # of a question that was interrupted before it was answered

    def _watch(self) -> tuple[int, list[int]]:
        userfaultfd, address = self.userfaultfd()
        return userfaultfd.detach(), [address]

    def close(self) -> None:
        """End the guest and give everything back; more than once does no harm.

        Unlike other machines it does not live on: nobody else could reach it.
        """
        self._memfd = -1
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, command: bytes, number: int, seconds: float | None = None) -> int:
        """Send a command and return how many steps are done when it is answered."""
        self._send(command, number)
        return self._answer(seconds)

    def _send(self, command: bytes, number: int) -> None:
        if self.pid <= 0:
            raise MachineError("the guest's process is gone")
        self._sequence += 1
        try:
            self._socket.send(child.COMMAND.pack(command, self._sequence, number))
        except OSError:
            raise MachineError(self._death()) from None

    def _receive(self, seconds: float | None) -> tuple[bytes, list[int]]:
        """The next message, and the descriptors that came with it."""
        self._socket.settimeout(seconds)
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, child.MESSAGE_BYTES, 1)
        except TimeoutError:
            raise MachineError(f"guest process {self.pid} did not answer within {seconds:g} s") from None
        except OSError:
            message = b""
        if not message:
            raise MachineError(self._death())
        return message, descriptors

    def _answer(self, seconds: float | None) -> int:
        while True:
            message, descriptors = self._receive(seconds)
            for fd in descriptors:  # of a userfaultfd that was not waited for
                os.close(fd)
            if message[:1] in (child.FAILED, child.HOST_FAILED):
                raise self._failure(message)
            kind, sequence, steps = child.ANSWER.unpack(message)
            if kind == child.FILLED:
                self._filled(steps)
                continue
            if sequence == self._sequence:  # an older answer was interrupted before it was read
                return int(steps)

    def _filled(self, pages: int) -> None:
        """So many pages are filled in all."""
        if pages > self._filled_pages:
            self._observer.advanced((pages - self._filled_pages) * TARGET_PAGE_SIZE)
            self._filled_pages = pages

    def _failure(self, message: bytes) -> FixedRamError:
        """What the guest says of its end."""
        kind, number = child.FAILURE.unpack_from(message)
        text = f"guest process {self.pid} failed: {message[child.FAILURE.size :].decode('utf-8', 'replace')}"
        if kind == child.FAILED:
            return MachineError(text)
        error = HostError(text)
        error.errno = number
        return error

    def _death(self) -> str:
        """What became of a process that has closed its end of the socket, which only its end does."""
        pid, self.pid = self.pid, -1
        return f"guest process {pid} {forked.reap(pid)}"

    def _kill(self) -> None:
        if self.pid > 0:
            forked.kill(self.pid)
            forked.reap(self.pid)
            self.pid = -1


def _check_memory(spec: GuestSpec) -> None:
    """Refuse what would end with the kernel killing processes.

    Raises:
        HostError: the pages to be written do not fit into the memory that is available.
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
