"""Try on a process of ours what a snapshot does to QEMU's; no QEMU is touched.

This shows what nothing in /proc says: a sandbox that forbids ptrace(2), a kernel that refuses a userfaultfd. It does
not show what Yama forbids, because Yama lets everybody trace their own children; see ``rights.may_trace_others``.
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
    """Read memory of a process of ours in the way that a QEMU's private RAM is read.

    Raises:
        HostError: it cannot be read.
    """
    with _process() as pid, _anonymous(pid):
        check_rights(pid)


def try_to_watch() -> None:
    """Get a userfaultfd of a process of ours through ptrace. It inherits our seccomp filters; we assume they allow it.

    Raises:
        HostError: it cannot be got.
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
    """A descriptor that the process inherits in case it needs it; -1 if there is none, which is reported when
    needed."""
    with contextlib.suppress(HostError):
        return userfaultfd.open_device()
    return -1


@contextlib.contextmanager
def _anonymous(pid: int) -> Iterator[None]:
    """Reword errors: if a process of ours is refused, a sandbox or security module does it, and its pid tells
    nothing."""
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
