"""ptrace(2) of one thread of another process. It is seized, not attached to, so that tracing it does not stop it.

If the tracer dies the thread is released and goes on: PTRACE_O_EXITKILL is never set. Every call goes through
``request``. Facts: Linux, include/uapi/linux/ptrace.h; arch/x86/include/uapi/asm/ptrace-abi.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, overload

from parallel_fixedram.host import linux

_PEEKDATA, _POKEDATA, _POKEUSER, _CONT, _GETREGS, _DETACH, _SYSCALL = 2, 5, 6, 7, 12, 17, 24
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_SECCOMP_GET_FILTER, _GET_SYSCALL_INFO, _GET_RSEQ_CONFIGURATION = 0x420C, 0x420E, 0x420F
_O_TRACESYSGOOD = 1
_EVENT_STOP = 128
_SIGTRAP = 5
_WALL = 0x40000000  # linux/wait.h: also wait for threads that were cloned without a signal
_SYSCALL_INFO_EXIT = 2
_BPF_MAXINSNS = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class Registers(NamedTuple):
    """What matters of struct user_regs_struct."""

    orig_rax: int
    """Number of the system call that the thread is in, or -1."""
    rip: int
    cs: int


_REGISTERS = struct.Struct("<120xqQQ72x")
"""Before these three there are 15 other registers, after them 9."""
_RIP_OFFSET = 16 * 8


class Why(Enum):
    """Why a thread stopped."""

    INTERRUPTED = auto()
    """By ``interrupt``."""
    STOPPED = auto()
    """A signal stopped the whole process."""
    SIGNAL = auto()
    """A signal is about to be delivered."""
    SYSCALL = auto()
    """It enters or leaves a system call."""
    ENDED = auto()
    """The thread has ended instead."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What ``wait`` found."""

    why: Why
    signum: int
    """The signal, for SIGNAL and STOPPED; otherwise 0."""


def request(number: int, tid: int, address: int = 0, data: int = 0) -> int:
    """One call of ptrace(2), raising OSError like others that Python wraps."""
    ctypes.set_errno(0)
    result = int(_libc.ptrace(number, tid, address, data))
    if result == -1 and (error := ctypes.get_errno()):
        raise OSError(error, os.strerror(error))
    return result


def seize(tid: int) -> None:
    """Begin to trace a thread, which keeps running."""
    request(_SEIZE, tid, 0, _O_TRACESYSGOOD)


def interrupt(tid: int) -> None:
    """Make the thread stop; ``wait`` returns when it has."""
    request(_INTERRUPT, tid)


def go_on(tid: int) -> None:
    """Let it run."""
    request(_CONT, tid)


def go_on_to_syscall(tid: int, signum: int = 0) -> None:
    """Let it run until it enters or leaves a system call."""
    request(_SYSCALL, tid, 0, signum)


def detach(tid: int, signum: int = 0) -> None:
    """Stop tracing the thread and let it run, unless a signal has stopped its process."""
    request(_DETACH, tid, 0, signum)


def registers(tid: int) -> Registers:
    """The registers of a stopped thread."""
    buffer = ctypes.create_string_buffer(_REGISTERS.size)
    request(_GETREGS, tid, 0, ctypes.addressof(buffer))
    return Registers(*_REGISTERS.unpack(buffer.raw))


def set_rip(tid: int, address: int) -> None:
    """Change where the thread goes on, and nothing else."""
    request(_POKEUSER, tid, _RIP_OFFSET, address)


def put(tid: int, address: int, data: bytes) -> None:
    """Write into the thread's memory, even if it is read-only there: the page becomes a private copy.

    Args:
        tid: the thread.
        address: where to write.
        data: a multiple of 8 bytes.
    """
    for position, (word,) in enumerate(struct.iter_unpack("<Q", data)):
        request(_POKEDATA, tid, address + 8 * position, word)


def returned(tid: int) -> tuple[int, int] | None:
    """If the thread has stopped on leaving a system call: ``rip``, and the result or -errno; otherwise None."""
    buffer = ctypes.create_string_buffer(88)
    request(_GET_SYSCALL_INFO, tid, len(buffer), ctypes.addressof(buffer))
    operation, _, rip, _, result, _ = struct.unpack_from("<B3xIQQqB", buffer.raw)
    return (rip, result) if operation == _SYSCALL_INFO_EXIT else None


def seccomp_filter(tid: int, index: int) -> bytes | None:
    """A seccomp filter of a stopped thread, as an array of struct sock_filter; None after the last one.

    Raises:
        OSError: EACCES without CAP_SYS_ADMIN, or if this process has filters itself.
    """
    buffer = ctypes.create_string_buffer(8 * _BPF_MAXINSNS)
    try:
        count = request(_SECCOMP_GET_FILTER, tid, index, ctypes.addressof(buffer))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return buffer.raw[: 8 * count]


def critical_section(tid: int) -> range:
    """Addresses of the restartable sequence that a stopped thread is in (rseq(2)); empty if it is in none.

    The kernel aborts a sequence that was interrupted by changing ``rip``, which it cannot do if we have changed it.
    """
    buffer = ctypes.create_string_buffer(24)
    try:
        request(_GET_RSEQ_CONFIGURATION, tid, len(buffer), ctypes.addressof(buffer))
    except OSError as error:
        if error.errno == errno.EIO:  # the kernel has no rseq
            return range(0)
        raise
    area = struct.unpack_from("<Q", buffer.raw)[0]
    if not area:
        return range(0)
    (where,) = struct.unpack("<Q", _read(tid, area + 8, 8))  # struct rseq: rseq_cs
    if not where:
        return range(0)
    _, start, length, _ = struct.unpack("<QQQQ", _read(tid, where, 32))  # struct rseq_cs
    return range(start, start + length)


@overload
def wait(tid: int) -> Stop: ...
@overload
def wait(tid: int, *, only_look: bool) -> Stop | None: ...
def wait(tid: int, *, only_look: bool = False) -> Stop | None:
    """Wait until the thread stops; with ``only_look`` do not wait, and return None if it is running."""
    found, status = os.waitpid(tid, _WALL | (os.WNOHANG if only_look else 0))
    if not found:
        return None
    if not os.WIFSTOPPED(status):
        return Stop(Why.ENDED, 0)
    signum = os.WSTOPSIG(status)
    if status >> 16 == _EVENT_STOP:
        return Stop(Why.INTERRUPTED, 0) if signum == _SIGTRAP else Stop(Why.STOPPED, signum)
    if signum == _SIGTRAP | 0x80:
        return Stop(Why.SYSCALL, 0)
    return Stop(Why.SIGNAL, signum)


def _read(tid: int, address: int, length: int) -> bytes:
    into = bytearray(length)
    if linux.process_vm_readv(tid, address, memoryview(into)) != length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return bytes(into)
