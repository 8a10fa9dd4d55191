"""The work of the injector, a process that lives for a millisecond and may be killed at any moment.

::

    us                                      the thread
     | seize, interrupt -------------------> stops, as for any signal
     | write the stub into zeros             (nobody runs there: to die here leaves dead bytes)
     | rip = stub + 2                        (one word. From here on the thread is on its own, traced or not)
     | go on to syscall -------------------> makes the call, stops
     | pidfd_getfd                           (the descriptor is ours, too)
     | go on to syscall -------------------> closes its own, stops
     | go on to syscall, interrupt --------> is back where it was, stops
     | zeros again; detach ----------------> runs

Signals that arrive meanwhile are passed on. If one came while the stub ran, its handler may run on top of the stub, so
we cannot tell when the thread is out of it: then the stub's bytes stay, and their place is never used again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host import linux
from parallel_fixedram.host.injection import ptrace, stub
from parallel_fixedram.host.injection.ptrace import Stop, Why
from parallel_fixedram.host.injection.seccomp_filters import allows
from parallel_fixedram.host.processes.rights import status

_CS_64_BIT = 0x33
_SYS_CLOSE = 3
_NO_SECCOMP, _STRICT = "0", "1"
"""In /proc/PID/status; "2" means filters."""
_MOMENT = 0.0001
"""Seconds that a dozen instructions usually need at most; if they need more, the wait is repeated."""


class InjectionRefused(HostError):
    """Injection is not possible; nothing was done to the process."""


def is_free(pid: int, place: int) -> bool:
    """Whether there are only zeros where a stub would go. Anything else is left alone, such as an earlier stub."""
    found = bytearray(stub.LENGTH)
    with contextlib.suppress(OSError):  # unmapped meanwhile
        return linux.process_vm_readv(pid, place, memoryview(found)) == len(found) and not any(found)
    return False


class CallFailed(HostError):
    """The system call failed in the process, which is as it was."""


class Thread:
    """The main thread of a process, which is made to run a stub.

    Args:
        pid: the process.
        pidfd: the same process.
        places: addresses where a stub may go if they hold zeros.
    """

    def __init__(self, pid: int, pidfd: int, places: list[int]) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._places = places
        self._disturbed = False
        """Whether a signal arrived since the stub was written."""

    def call(self, call: stub.Call, *, filters_are_known: bool) -> int:
        """Have the thread make a system call; returns the descriptor, of which we then have the only copy.

        Args:
            call: the system call.
            filters_are_known: whether to go on if seccomp filters cannot be read.

        Raises:
            InjectionRefused: it is not possible; the process is as it was.
            CallFailed: the system call failed; the process is as it was.
            MachineError: the process has ended.
            OSError: a call of ours failed; the process is as it was, or runs the stub to its end by itself.
        """
        self._seize()
        rip = self._stop()
        self._check_filters(call, filters_are_known)
        place = self._free_place()
        ptrace.put(self._pid, place, stub.encode(call, rip))
        self._disturbed = False
        ptrace.set_rip(self._pid, place + stub.ENTRY)
        result = self._return_of(place, stub.AFTER_CALL)
        if result >= 0:
            # now, because the stub's next call closes it in the process
            fd = linux.pidfd_getfd(self._pidfd, result)
            self._return_of(place, stub.AFTER_CLOSE)
        ptrace.detach(self._pid, self._leave(place))
        if result < 0:
            raise CallFailed(f"process {self._pid} cannot get a userfaultfd", errno=-result)
        return fd

    def _seize(self) -> None:
        try:
            ptrace.seize(self._pid)
        except PermissionError as error:
            if (tracer := status(self._pid)["TracerPid"]) != "0":
                raise InjectionRefused(f"process {self._pid} is traced by {tracer}") from error
            raise

    def _stop(self) -> int:
        """Stop the thread where it can run a stub; returns its ``rip``."""
        while True:
            ptrace.interrupt(self._pid)
            self._wait_for(Why.INTERRUPTED)
            registers = ptrace.registers(self._pid)
            if registers.cs != _CS_64_BIT:
                raise InjectionRefused(f"process {self._pid} does not run 64-bit code")
            if registers.orig_rax >= 0 or registers.rip not in ptrace.critical_section(self._pid):
                return registers.rip
            ptrace.go_on(self._pid)

    def _check_filters(self, call: stub.Call, are_known: bool) -> None:
        mode = status(self._pid).get("Seccomp", _NO_SECCOMP)
        if mode == _NO_SECCOMP:
            return
        if mode == _STRICT:
            raise InjectionRefused(f"process {self._pid} is in seccomp's strict mode")
        index = 0
        try:
            while (program := ptrace.seccomp_filter(self._pid, index)) is not None:
                if not (allows(program, call.number, call.arguments) and allows(program, _SYS_CLOSE, None)):
                    raise InjectionRefused(f"a seccomp filter of process {self._pid} does not allow it")
                index += 1
        except OSError as error:
            if not are_known:
                what = f"process {self._pid} has a seccomp filter, which cannot be read"
                raise InjectionRefused(f"{what}: {os.strerror(error.errno or 0).lower()}") from error

    def _free_place(self) -> int:
        for place in self._places:
            if is_free(self._pid, place):
                return place
        raise InjectionRefused(f"process {self._pid} has no room for {stub.LENGTH} bytes of code")

    def _return_of(self, place: int, where: tuple[int, ...]) -> int:
        """Let the thread run until the stub's system call has returned; returns the result of that."""
        while True:
            ptrace.go_on_to_syscall(self._pid)
            self._wait_for(Why.SYSCALL)
            returned = ptrace.returned(self._pid)
            if returned is not None and returned[0] - place in where:
                return returned[1]

    def _leave(self, place: int) -> int:
        """Let the thread run until it is out of the stub, and clear the stub unless the thread may come back to it.

        Returns:
            A signal that still has to be delivered, or 0.
        """
        inside = range(place, place + stub.LENGTH)
        stop = Stop(Why.SYSCALL, 0)
        while not self._disturbed and ptrace.registers(self._pid).rip in inside:
            ptrace.go_on_to_syscall(self._pid)
            time.sleep(_MOMENT)
            if (found := ptrace.wait(self._pid, only_look=True)) is None:
                ptrace.interrupt(self._pid)
                found = ptrace.wait(self._pid)
            stop = found
            self._check(stop)
        if not self._disturbed:
            ptrace.put(self._pid, place, bytes(stub.LENGTH))
        return stop.signum

    def _wait_for(self, why: Why) -> None:
        """Wait until the thread has stopped for this reason; signals are delivered."""
        while self._check(stop := ptrace.wait(self._pid)) is not why:
            ptrace.go_on_to_syscall(self._pid, stop.signum)

    def _check(self, stop: Stop) -> Why:
        match stop.why:
            case Why.ENDED:
                raise MachineError(f"process {self._pid} has ended")
            case Why.STOPPED:
                raise HostError(f"process {self._pid} was stopped by {signal.Signals(stop.signum).name}")
            case Why.SIGNAL:
                self._disturbed = True
        return stop.why
