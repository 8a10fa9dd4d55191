"""Processes that notice whatever is done to them: in a loop, or in a system call that waits."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from support.machine_code import ARRIVED, FREE, RED_ZONE_WORDS, SCRATCH, SPIN, SYSCALL, MachineCode, State
from support.puppet import Puppet, nothing

_FLAGS = 0x4D5
"""CF, PF, AF, ZF, SF, DF."""
_ALWAYS = 0x202
"""IF, and a bit that is always set."""
_SYS_READ, _SYS_POLL, _SYS_NANOSLEEP, _SYS_FUTEX, _SYS_PPOLL = 0, 7, 35, 202, 271
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_LONG = 1000
"""Seconds."""

EINTR = -4


class Watchful(Puppet):
    """A process that runs code with registers, and looks at them afterwards.

    Args:
        code: what it runs.
        registers: some of them; the others are arbitrary.
        first: what the process does first of all.
    """

    def __init__(self, code: MachineCode, registers: Mapping[str, int], first: Callable[[], object]) -> None:
        super().__init__(code.run, first)
        self.code = code
        chosen = random.Random(1)
        self._registers = {name: chosen.getrandbits(64) for name in FREE} | dict(registers)
        self._given = State(
            registers=tuple(self._registers.values()),
            flags=_FLAGS,
            red_zone=tuple(chosen.getrandbits(64) for _ in range(RED_ZONE_WORDS)),
            sse=chosen.randbytes(256),
        )

    def start(self) -> None:
        """Have it begin, and come back when it is there."""
        self.code.give(self._given)
        self.begin()
        while not self.code.memory[ARRIVED]:
            os.sched_yield()

    def check(self) -> None:
        """Have it end, which it must not have done yet, and see that nothing is other than it should be."""
        raise NotImplementedError

    def ended(self, **changed: int) -> None:
        """It ends by itself, and these registers alone are other than they were."""
        found = self.end()
        assert dict(zip(FREE, found.registers, strict=True)) == self._registers | changed
        assert (found.flags, found.red_zone, found.sse) == (_FLAGS, self._given.red_zone, self._given.sse)

    def descriptors(self) -> dict[str, str]:
        return {each.name: os.readlink(each) for each in Path(f"/proc/{self.pid}/fd").iterdir()}


class Looping(Watchful):
    """In a loop of two instructions."""

    def __init__(self, first: Callable[[], object] = nothing) -> None:
        super().__init__(MachineCode(*SPIN), {"rcx": 0}, first)

    def check(self) -> None:
        assert not self.has_answered()
        self.code.go()
        self.ended(rcx=1)


class Calling(Watchful):
    """In a system call; ``wake`` has it end with ``result``.

    Args:
        number: which.
        arguments: made of the address of the part of the code's memory that is for them.
        scratch: what is there.
        first: what the process does first of all.
    """

    result = 1

    def __init__(
        self,
        number: int,
        arguments: Callable[[int], tuple[int, ...]],
        scratch: bytes,
        first: Callable[[], object],
    ) -> None:
        code = MachineCode(*SYSCALL)
        code.memory[SCRATCH : SCRATCH + len(scratch)] = scratch
        self.scratch = code.address + SCRATCH
        registers = dict(zip(_ARGUMENTS, arguments(self.scratch), strict=False)) | {"rax": number}
        super().__init__(code, registers, first)
        self._number = number

    def start(self) -> None:
        super().start()
        while not Path(f"/proc/{self.pid}/syscall").read_text().startswith(f"{self._number} "):
            os.sched_yield()

    def check(self) -> None:
        assert not self.has_answered()
        self.wake()
        self.returned(self.result)

    def returned(self, result: int) -> None:
        """It ends by itself, with that result."""
        self.ended(rax=result & (1 << 64) - 1, rcx=self.code.after, r11=_FLAGS | _ALWAYS)

    def wake(self) -> None:
        raise NotImplementedError


class _OnPipe(Calling):
    """It waits for a byte."""

    def __init__(
        self, number: int, arguments: Callable[[int, int], tuple[int, ...]], first: Callable[[], object]
    ) -> None:
        self._reader, self._writer = os.pipe()
        pollfd = struct.pack("<ihh", self._reader, 1, 0)
        super().__init__(number, lambda at: arguments(self._reader, at), pollfd, first)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        os.close(self._reader)
        os.close(self._writer)

    def wake(self) -> None:
        os.write(self._writer, b"x")

    def returned(self, result: int) -> None:
        super().returned(result)
        if result == 1 and self._number != _SYS_READ:
            os.read(self._reader, 1)


class Reading(_OnPipe):
    """Starts again unless a signal's handler wants it to end."""

    def __init__(self, first: Callable[[], object] = nothing) -> None:
        super().__init__(_SYS_READ, lambda fd, at: (fd, at + 64, 1), first)


class Polling(_OnPipe):
    """Goes on by restart_syscall, with the time that is left."""

    def __init__(self, first: Callable[[], object] = nothing) -> None:
        super().__init__(_SYS_POLL, lambda _, at: (at, 1, 1000 * _LONG), first)


class MaskedPolling(_OnPipe):
    """ppoll with a signal mask of its own, empty: a signal that is blocked elsewhere ends it, and must not be lost."""

    def __init__(self, first: Callable[[], object] = nothing) -> None:
        super().__init__(_SYS_PPOLL, lambda _, at: (at, 1, 0, at + 64, 8), first)


class Waiting(Calling):
    """On a futex, with a time-out: it goes on by restart_syscall."""

    result = 0

    def __init__(self, first: Callable[[], object] = nothing) -> None:
        time_out = struct.pack("<qq", _LONG, 0)
        super().__init__(_SYS_FUTEX, lambda at: (at + 64, _FUTEX_WAIT, 0, at), time_out, first)

    def wake(self) -> None:
        while not self.has_answered():
            ctypes.CDLL(None).syscall(_SYS_FUTEX, ctypes.c_uint64(self.scratch + 64), _FUTEX_WAKE, 1)


class Sleeping(Calling):
    """For a while, and not for less."""

    result = 0
    SECONDS = 0.05

    def __init__(self, first: Callable[[], object] = nothing) -> None:
        time_out = struct.pack("<qq", 0, int(self.SECONDS * 1e9))
        super().__init__(_SYS_NANOSLEEP, lambda at: (at, 0), time_out, first)

    def start(self) -> None:
        self._begun = time.monotonic()
        Watchful.start(self)

    def check(self) -> None:
        self.returned(self.result)
        assert time.monotonic() - self._begun >= self.SECONDS


UNTIL_WOKEN = (Looping, Reading, Polling, MaskedPolling, Waiting)
ALL = (*UNTIL_WOKEN, Sleeping)


def handles(signum: int, *, restarts: bool = False, blocked: bool = False) -> Callable[[], None]:
    """Something to do first: handle a signal, by nothing."""

    def first() -> None:
        signal.signal(signum, lambda *_: None)
        signal.siginterrupt(signum, not restarts)
        if blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signum])

    return first
