"""Get a userfaultfd of another process from outside: its main thread is made to ask for one, and runs on.

This takes the rights of a debugger. The other process, too, must be allowed a full userfaultfd: it has CAP_SYS_PTRACE,
or vm.unprivileged_userfaultfd is 1, or it is handed /dev/userfaultfd. The caller decides whether a process may be
treated like this. A separate process makes all ptrace calls: wherever it is killed, the traced process is then, or a
moment later, as it was before (see ``stub``).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import platform
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.injection import code_places
from parallel_fixedram.host.injection.injector import CallFailed, InjectionRefused, Thread, is_free
from parallel_fixedram.host.injection.stub import LENGTH, Call
from parallel_fixedram.host.memory import userfaultfd
from parallel_fixedram.host.memory.process_maps import each_mapping, refusal
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.host.processes import forked, rights, signals
from parallel_fixedram.host.processes.rights import Capability, status

_SECONDS = 3.0
"""It takes a millisecond, unless something holds up the thread."""

_ANSWER = 1 << 14
"""Most bytes of a pickled error, which has a few hundred."""

_MOST_PLACES = 4
_SYS_IOCTL = 16
_HOW_IT_MAY = (
    f"the process needs CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd = 1, or {userfaultfd.DEVICE} handed to it"
)


def userfaultfd_of(
    pid: int, *, hand_over: Callable[[int], int] | None = None, filters_are_known: bool = False
) -> Userfaultfd:
    """A full userfaultfd of the process, not set up yet. The process itself has no descriptor of it.

    Args:
        pid: the process.
        hand_over: gives the process a descriptor of /dev/userfaultfd and returns its number there; called if the
            process may not have a userfaultfd without it. Taking it back is up to the caller.
        filters_are_known: whether to assume that seccomp filters which cannot be read allow userfaultfd, ioctl and
            close.

    Raises:
        InjectionRefused: this is not possible with that process, which is as it was.
        HostError: it failed; the process is as it was.
        MachineError: the process has ended.
    """
    if reason := takes_injection(pid, filters_are_known=filters_are_known):
        raise InjectionRefused(reason)
    try:
        return _made(pid, Call(number=linux.SYS_USERFAULTFD, arguments=(userfaultfd.FLAGS, 0, 0)), filters_are_known)
    except CallFailed as error:
        if error.errno != errno.EPERM:
            raise
        if hand_over is None:
            what = f"process {pid} may not have a full userfaultfd"
            raise HostError(what, errno=errno.EPERM, hint=_HOW_IT_MAY) from error
    device = userfaultfd.open_device()
    with linux.closing(device):
        number = hand_over(device)
        _check_handed_over(pid, number, device)
        arguments = (number, userfaultfd.USERFAULTFD_IOC_NEW, userfaultfd.FLAGS)
        return _made(pid, Call(number=_SYS_IOCTL, arguments=arguments), filters_are_known)


def takes_injection(pid: int, *, filters_are_known: bool = False) -> str | None:
    """Why we cannot get a userfaultfd of the process from outside, as far as can be told without touching it.

    Whether the process itself may have a full one is not considered.

    Args:
        pid: the process.
        filters_are_known: as for ``userfaultfd_of``.

    Raises:
        MachineError: the process has ended.
    """
    if platform.machine() != "x86_64":
        return f"this host is {platform.machine()}, and only on x86_64 can a process be made to ask for a userfaultfd"
    try:
        found = status(pid)
        linux.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))  # needs the same right as ptrace
        linux.may_read_process(pid)
    except OSError as error:
        missing = refusal(pid, error, f"process {pid} may not be traced")
        if isinstance(missing, HostError):
            return ": ".join(filter(None, (missing.message, missing.hint)))
        raise missing from error
    if found["State"].startswith(("T", "t")) or found["TracerPid"] != "0":
        tracer = found["TracerPid"]
        return f"process {pid} is stopped by a signal" if tracer == "0" else f"process {pid} is traced by {tracer}"
    if found.get("Seccomp", "0") != "0" and not filters_are_known and not _may_read_filters():
        return f"process {pid} has a seccomp filter, which takes CAP_SYS_ADMIN to read"
    try:
        lacking = userfaultfd.missing_features()
        if not _free_places(pid):
            return f"process {pid} has no 64-bit x86 code with free room after it"
    except HostError as error:
        return error.message
    if lacking:
        return "this kernel has no " + ", ".join(f"UFFD_FEATURE_{each.name}" for each in lacking)
    return None


def require_right(pid: int) -> None:
    """Check that the process may have a full userfaultfd, or can be handed the device that gives it one.

    Raises:
        HostError: neither is the case.
        MachineError: the process has ended.
    """
    try:
        has_right = rights.has(pid, Capability.SYS_PTRACE)
    except OSError as error:
        raise refusal(pid, error, f"process {pid} may not be looked at") from error
    if not has_right and not userfaultfd.is_for_everybody():
        linux.close(userfaultfd.open_device())


def _may_read_filters() -> bool:
    us = os.getpid()
    return status(us).get("Seccomp", "0") == "0" and rights.has(us, Capability.SYS_ADMIN)


def _check_handed_over(pid: int, number: int, device: int) -> None:
    """If the number were another file in the process, the ioctl would go to that file."""
    with contextlib.suppress(OSError):
        theirs = os.stat(f"/proc/{pid}/fd/{number}")
        if stat.S_ISCHR(theirs.st_mode) and theirs.st_rdev == os.fstat(device).st_rdev:
            return
    raise HostError(f"process {pid} has no {userfaultfd.DEVICE} as its descriptor {number}")


def _free_places(pid: int) -> list[int]:
    """Addresses in the process where a stub can be put now: several, in case one is taken meanwhile."""
    return list(itertools.islice(filter(partial(is_free, pid), _places(pid)), _MOST_PLACES))


def _places(pid: int) -> Iterator[int]:
    heads: dict[tuple[int, int], int] = {}
    for each in each_mapping(pid):  # ascending, so that a file's head comes before its code
        file = each.device, each.inode
        if each.inode and each.offset == 0:
            heads[file] = each.start
        if each.permissions == "r-xp" and file in heads:
            code = code_places.Code(start=each.start, end=each.end, offset=each.offset)
            yield from code_places.places(code, code_places.code_ends(_head(pid, heads[file])), LENGTH)


def _head(pid: int, address: int) -> bytes:
    into = bytearray(code_places.HEAD_LENGTH)
    try:
        return bytes(into[: linux.process_vm_readv(pid, address, memoryview(into))])
    except OSError:  # the file was truncated, or is a device
        return b""


def _made(pid: int, call: Call, filters_are_known: bool) -> Userfaultfd:
    fd = _injected(pid, call, filters_are_known)
    if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[userfaultfd]":
        linux.close(fd)
        raise HostError(f"process {pid} handed over something other than a userfaultfd")
    return Userfaultfd(fd)


def _injected(pid: int, call: Call, filters_are_known: bool) -> int:
    """Have a process of ours get the call made; returns the descriptor."""
    child, us, found = 0, os.getpid(), _free_places(pid)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise HostError.from_os(f"cannot stop process {pid}", error) from error
    with ours:
        try:
            with theirs, signals.held():
                child = os.fork()
                if child == 0:
                    forked.settle_in(us)
                    _inject(pid, call, found, filters_are_known, theirs)
            ours.settimeout(_SECONDS)
            answer, descriptors, *_ = socket.recv_fds(ours, _ANSWER, 1)
            if descriptors:
                return descriptors[0]
            if answer:
                raise pickle.loads(answer)
            ended, child = forked.reap(child), 0
            raise HostError(f"the process that was to stop process {pid} {ended}")
        except TimeoutError as error:
            raise HostError(f"process {pid} does not stop: it may be frozen, or waiting for a disk") from error
        except OSError as error:
            raise HostError.from_os(f"cannot stop process {pid}", error) from error
        finally:
            if child:
                forked.kill(child)
                forked.reap(child)


def _inject(pid: int, call: Call, found: list[int], filters_are_known: bool, answer: socket.socket) -> NoReturn:
    try:
        try:
            pidfd = os.pidfd_open(pid)
            fd = Thread(pid, pidfd, found).call(call, filters_are_known=filters_are_known)
            socket.send_fds(answer, [b"!"], [fd])
        except FixedRamError as error:
            answer.send(pickle.dumps(error))
        except OSError as error:
            answer.send(pickle.dumps(_failure(pid, error)))
    finally:
        os._exit(0)


def _failure(pid: int, error: OSError) -> FixedRamError:
    return refusal(pid, error, f"cannot make process {pid} ask for a userfaultfd")
