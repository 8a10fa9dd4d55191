"""What a snapshot does to QEMU's process, tried on one of ours: nothing of a QEMU is touched.

That shows what no file of /proc says: a sandbox that forbids ptrace(2), a kernel that refuses a userfaultfd. Yama lets
everybody trace his children, so that what it forbids is asked of it (``rights.may_trace_others``).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import NoReturn

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.injection.inject import require_right, userfaultfd_of
from parallel_fixedram.host.memory import userfaultfd
from parallel_fixedram.host.memory.process_maps import check_rights
from parallel_fixedram.host.processes import forked, signals

_SANDBOX = (
    "a sandbox has to allow ptrace(2), process_vm_readv(2) and userfaultfd(2); in a container: --cap-add SYS_PTRACE, "
    "or --security-opt seccomp=unconfined"
)


def try_to_read() -> None:
    """Read memory of a process of ours, as that of a QEMU is read whose RAM is private.

    Raises:
        HostError: it cannot be.
    """
    with _process() as pid, _anonymous(pid):
        check_rights(pid)


def try_to_watch() -> None:
    """Have a userfaultfd of a process of ours, by way of ptrace; a filter that it has, as we do, is taken to allow it.

    Raises:
        HostError: it cannot be had.
    """
    device = _device()
    try:
        with _process() as pid:
            require_right(pid)
            with _anonymous(pid):
                found = userfaultfd_of(pid, hand_over=lambda _: device, filters_are_known=True)
                try:
                    found.enable()
                finally:
                    found.close()
    finally:
        if device >= 0:
            linux.close(device)


def _device() -> int:
    """A descriptor that the process inherits, should it need it; -1 where there is none, which will be said then."""
    with contextlib.suppress(HostError):
        return userfaultfd.open_device()
    return -1


@contextlib.contextmanager
def _anonymous(pid: int) -> Iterator[None]:
    """What is refused of a process of ours is a sandbox's doing, or a security module's; its number tells nothing."""
    try:
        yield
    except FixedRamError as error:
        raise HostError(error.message.replace(f"process {pid}", "a process of ours"), hint=_SANDBOX) from error


@contextlib.contextmanager
def _process() -> Iterator[int]:
    """A process with our rights that does nothing."""
    us, pid = os.getpid(), 0
    try:
        try:
            with signals.held():
                pid = os.fork()
                if pid == 0:
                    _wait(us)
        except OSError as error:
            raise HostError.from_os("cannot start a process to try it on", error) from error
        yield pid
    finally:
        if pid:
            forked.kill(pid)
            forked.reap(pid)


def _wait(parent: int) -> NoReturn:
    try:
        forked.settle_in(parent)
        while True:
            signal.pause()
    finally:
        os._exit(0)
