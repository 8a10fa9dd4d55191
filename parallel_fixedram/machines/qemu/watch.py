"""Make writes of a running QEMU wait, by a userfaultfd of its process, which we make the process ask for.

This is the only thing that we do to QEMU's process itself (``host/injection``), and it can be forbidden: by an
environment variable for one command, or by a file for the whole host.
"""

from __future__ import annotations

import os

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.protocols import AddressSpace
from parallel_fixedram.core.ramblock import MOST_COPIED_BYTES
from parallel_fixedram.host.injection.inject import require_right, takes_injection, userfaultfd_of
from parallel_fixedram.host.memory.process_maps import refusal, takes_protection
from parallel_fixedram.machines.qemu.discovery import Makeup, run_state
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.trials import Setting
from parallel_fixedram.machines.qemu.unwatched import Merging, refuse_unwatched

VARIABLE = "PARALLEL_FIXEDRAM_INJECTION"
"""If set to ``never``, this command injects no code."""

FORBIDDEN = "/etc/parallel-fixedram/no-injection"
"""If this file exists, no command on this host injects code."""


def address_space(monitor: Monitor, pid: int, found: Makeup) -> AddressSpace:
    """What a snapshot needs of a QEMU; nothing is done to it yet.

    Args:
        monitor: of the QEMU; not to be used by anybody else during ``watch`` or ``has_answered``.
        pid: its process.
        found: what it is made of.

    Raises:
        MachineError: the machine has a device or disk that rules it out, or QEMU has ended.
        HostError: it is forbidden, or we lack a right, or the kernel a feature.
    """
    refuse_if_forbidden()
    if "qemu" not in (program := _program_of(pid)):
        raise MachineError(f"process {pid} runs {program!r}, which may not be QEMU: it is left alone")
    refuse_unwatched(monitor, found)
    _refuse_unprotectable(pid, found)
    merging = Merging(pid, found)
    merging.refuse()
    if reason := takes_injection(pid):
        raise HostError(reason)
    require_right(pid)

    def has_answered() -> None:
        run_state(monitor)
        merging.refuse()

    return AddressSpace(
        watch=lambda: (_userfaultfd(monitor, pid), [block.address for block in found.blocks]),
        has_answered=has_answered,
        unproven=setting(monitor).unproven,
    )


def _program_of(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError as error:
        raise refusal(pid, error, f"cannot see what process {pid} runs") from error


def refuse_if_forbidden() -> None:
    """Refuse if it is forbidden for this command or on this host.

    Raises:
        HostError: it is forbidden.
    """
    if os.environ.get(VARIABLE) == "never":
        raise HostError(f"{VARIABLE}=never forbids asking QEMU's process for a userfaultfd")
    if os.path.exists(FORBIDDEN):
        raise HostError(f"{FORBIDDEN!r} forbids asking QEMU's process for a userfaultfd")


def _refuse_unprotectable(pid: int, found: Makeup) -> None:
    for block in found.blocks:
        if block.used_length > MOST_COPIED_BYTES and not takes_protection(pid, block.address, block.used_length):
            raise HostError(
                f"block {block.idstr!r} is a file on a disk: this memory cannot be write-protected",
                hint="a memory-backend-memfd can be, and a mem-path on tmpfs or hugetlbfs",
            )


def setting(monitor: Monitor) -> Setting:
    """The conditions under which a snapshot of this QEMU is taken."""
    answer = monitor.execute("query-kvm")
    if not isinstance(answer, dict) or not isinstance(answer.get("enabled"), bool):
        raise monitor.malformed("query-kvm", answer)
    return Setting(qemu=".".join(map(str, monitor.version)), kvm=answer["enabled"])


def _userfaultfd(monitor: Monitor, pid: int) -> int:
    with FdSet(monitor) as handed_over:

        def hand_over(device: int) -> int:
            handed_over.add(device)
            return handed_over.number_in_qemu()

        return userfaultfd_of(pid, hand_over=hand_over).detach()
